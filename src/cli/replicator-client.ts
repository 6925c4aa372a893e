import { z } from 'zod';
import { ProtocolError, RivuletError } from '../errors.ts';
import type { DigestReport } from '../fanout/digest-board.ts';
import type { ReplicatorStatus } from '../replicator/status.ts';

const ANSWER_TIMEOUT_MS = 10_000;
/** The replicas are given a minute. */
const DIGEST_TIMEOUT_MS = 90_000;

const text = z.string().nullable();
const number = z.number().nullable();

const digestSchema: z.ZodType<DigestReport> = z.object({
  position: z.string(),
  at: z.string(),
  replicas: z.array(z.string()),
  silent: z.array(z.string()),
  tables: z.number(),
  differing: z.array(
    z.object({
      table: z.string(),
      groups: z.array(z.object({ replicas: z.array(z.string()), rows: number, digest: text })),
    }),
  ),
});

const statusSchema: z.ZodType<ReplicatorStatus> = z.object({
  state: z.enum(['starting', 'copying', 'streaming', 'reconnecting', 'failed']),
  reasons: z.array(z.string()),
  epoch: text,
  position: text,
  durablePosition: text,
  copy: z
    .object({
      tablesDone: z.number(),
      tablesTotal: z.number(),
      rows: z.number(),
      bytes: z.number(),
      totalBytes: z.number(),
      doneBytes: z.number(),
      etaMs: number,
    })
    .nullable(),
  postgres: z.object({
    version: text,
    database: text,
    walEnd: text,
    connected: z.boolean(),
    lastError: text,
  }),
  slot: z.object({
    name: z.string(),
    active: z.boolean().nullable(),
    walStatus: text,
    retainedBytes: number,
    safeWalBytes: number,
    lostInMs: number,
  }),
  tables: z.object({
    mirrored: z.number(),
    notMirrored: z.array(z.object({ table: z.string(), reason: z.string() })),
    reloading: z.array(z.object({ table: z.string(), rows: z.number() })),
  }),
  log: z.object({ bytes: z.number(), batches: z.number(), oldestPosition: text, newestPosition: text }),
  followers: z.array(
    z.object({
      id: z.string(),
      name: z.string(),
      state: z.string(),
      position: text,
      lagMs: z.object({ p50: number, p99: number, last: number }),
      lagBytes: number,
      connectedAt: z.string(),
      lastSeenAt: z.string(),
    }),
  ),
  digest: digestSchema.nullable(),
  snapshot: z.object({ position: text, bytes: number }),
});

const errorSchema = z.object({ code: z.string(), message: z.string(), hint: z.string().optional() });

/** fetch itself says no more than 'fetch failed'. */
function describeFetchError(error: unknown): string {
  const { cause, message } = error as { cause?: { code?: string; message?: string }; message: string };
  return cause?.code ?? cause?.message ?? message;
}

interface AskOptions {
  readonly token?: string | undefined;
  readonly signal?: AbortSignal;
}

/** Asks a replicator how it is. */
export function fetchStatus(url: string, options: AskOptions): Promise<ReplicatorStatus> {
  return ask(
    url,
    { ...options, path: '/v1/status', method: 'GET', timeoutMs: ANSWER_TIMEOUT_MS },
    statusSchema,
  );
}

/** Has the replicas of a replicator compared with each other. */
export function runDigest(url: string, options: AskOptions): Promise<DigestReport> {
  return ask(
    url,
    { ...options, path: '/v1/digest', method: 'POST', timeoutMs: DIGEST_TIMEOUT_MS },
    digestSchema,
  );
}

async function ask<T>(
  url: string,
  options: AskOptions & {
    readonly path: string;
    readonly method: 'GET' | 'POST';
    readonly timeoutMs: number;
  },
  schema: z.ZodType<T>,
): Promise<T> {
  const timeout = AbortSignal.timeout(options.timeoutMs);
  let body: unknown;
  try {
    const response = await fetch(`${url}${options.path}`, {
      method: options.method,
      headers: options.token === undefined ? {} : { authorization: `Bearer ${options.token}` },
      signal: options.signal === undefined ? timeout : AbortSignal.any([options.signal, timeout]),
    });
    body = await response.json().catch(() => null);
    if (response.status === 401) {
      throw new RivuletError('UNAUTHORIZED', `the replicator at ${url} refuses the token`, {
        hint: 'give the --token-file or RIVULET_TOKEN that it was started with',
      });
    }
    if (!response.ok) {
      const said = errorSchema.safeParse(body).data;
      if (said?.code === 'NOT_READY')
        throw new RivuletError('NOT_READY', said.message, said.hint === undefined ? {} : { hint: said.hint });
      throw new RivuletError(
        'PROTOCOL',
        `${url} answers ${response.status}${said === undefined ? '' : `: ${said.message}`}`,
        { hint: 'is this the URL of a replicator, without a path behind it?' },
      );
    }
  } catch (cause) {
    if (cause instanceof RivuletError) throw cause;
    const reason = describeFetchError(cause);
    throw new RivuletError('REPLICATOR_UNREACHABLE', `no replicator answers at ${url} (${reason})`, {
      cause,
      hint: 'is it running, and is this its --listen address?',
    });
  }
  const answer = schema.safeParse(body);
  if (!answer.success) {
    throw new ProtocolError(`what answers at ${url} is not a replicator of this version`, {
      hint:
        body === null || typeof body !== 'object'
          ? 'is this the address of a replicator?'
          : `use the same version on both sides (${answer.error.issues[0]?.path.join('.')}: ${answer.error.issues[0]?.message})`,
    });
  }
  return answer.data;
}
