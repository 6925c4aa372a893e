import { z } from 'zod';
import { ERROR_TABLE, type ErrorCode, ProtocolError, RivuletError } from '../errors.ts';
import type { DigestReport } from '../fanout/digest-board.ts';
import type { ReplicatorStatus } from '../replicator/status.ts';
import type { TransferProgress } from '../snapshot/chunk-upload.ts';
import type { SnapshotterStatus } from '../snapshot/snapshotter.ts';

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

const uploadSchema = z
  .object({ bytes: z.number(), totalBytes: z.number(), sentBytes: z.number() })
  .nullable();

const statusSchema: z.ZodType<ReplicatorStatus> = z.object({
  state: z.enum(['starting', 'copying', 'streaming', 'reconnecting', 'failed']),
  reasons: z.array(z.string()),
  upstream: z
    .object({
      url: z.string(),
      connected: z.boolean(),
      lastError: text,
      postgresHeardAgoMs: number,
      lagMs: z.object({ p50: number, p99: number, last: number }),
    })
    .nullable(),
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
  postgres: z
    .object({
      version: text,
      database: text,
      walEnd: text,
      // A replicator of before does not tell.
      asOf: text.default(null),
      connected: z.boolean(),
      lastError: text,
    })
    .nullable(),
  slot: z
    .object({
      name: z.string(),
      active: z.boolean().nullable(),
      walStatus: text,
      retainedBytes: number,
      safeWalBytes: number,
      lostInMs: number,
    })
    .nullable(),
  tables: z
    .object({
      mirrored: z.number(),
      notMirrored: z.array(z.object({ table: z.string(), reason: z.string() })),
      reloading: z.array(
        z.object({
          table: z.string(),
          rows: z.number(),
          // A replicator of before does not tell.
          problem: text.default(null),
        }),
      ),
    })
    .nullable(),
  openTransactions: z
    .object({ count: z.number(), bytes: z.number() })
    .nullable()
    // A replicator of before does not tell.
    .default(null),
  log: z.object({ bytes: z.number(), batches: z.number(), oldestPosition: text, newestPosition: text }),
  followers: z.array(
    z.object({
      id: z.string(),
      name: z.string(),
      via: text,
      state: z.string(),
      position: text,
      lagMs: z.object({ p50: number, p99: number, last: number }),
      lagBytes: number,
      connectedAt: z.string(),
      lastSeenAt: z.string(),
    }),
  ),
  buffers: z.object({ bufferedBytes: z.number(), totalBufferBytes: z.number() }),
  digest: digestSchema.nullable(),
  snapshot: z.object({ position: text, bytes: number }),
  store: z
    .object({
      url: z.string(),
      durability: z.enum(['local', 'store']),
      state: z.enum(['opening', 'archiving', 'fenced']),
      archivedPosition: text,
      behindBytes: number,
      snapshots: number,
      newestSnapshot: z
        .object({ position: z.string(), takenAt: z.string(), fileBytes: z.number() })
        .nullable(),
      upload: uploadSchema,
      lastError: text,
    })
    .nullable(),
});

const snapshotterSchema: z.ZodType<SnapshotterStatus> = z.object({
  state: z.enum([
    'opening',
    'bootstrapping',
    'catching-up',
    'live',
    'following-store',
    'disconnected',
    'failed',
    'closed',
  ]),
  isHealthy: z.boolean(),
  reasons: z.array(z.string()),
  position: text,
  store: z.string(),
  newestSnapshot: z.object({ position: z.string(), takenAt: z.string() }).nullable(),
  upload: uploadSchema,
});

const errorSchema = z.object({ code: z.string(), message: z.string(), hint: z.string().optional() });

/** fetch itself says no more than 'fetch failed'. */
function describeFetchError(error: unknown): string {
  const { cause, message } = error as { cause?: { code?: string; message?: string }; message: string };
  return cause?.code ?? cause?.message ?? message;
}

interface AskOptions {
  readonly token?: string | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Asks a replicator how it is. */
export async function fetchStatus(url: string, options: AskOptions): Promise<ReplicatorStatus> {
  return check(statusSchema, await askForStatus(url, options), url);
}

/** Asks whatever it is that takes snapshots there, a replicator or a snapshotter, how it is. */
export async function fetchEitherStatus(
  url: string,
  options: AskOptions,
): Promise<{ readonly replicator: ReplicatorStatus } | { readonly snapshotter: SnapshotterStatus }> {
  const answer = await askForStatus(url, options);
  const snapshotter = snapshotterSchema.safeParse(answer);
  return snapshotter.success
    ? { snapshotter: snapshotter.data }
    : { replicator: check(statusSchema, answer, url) };
}

/** A snapshotter shows it of itself, a replicator among what it shows of its store. */
const underWaySchema = z.union([
  z.object({ upload: uploadSchema }),
  z.object({ store: z.object({ upload: uploadSchema }) }).transform(({ store }) => store),
]);

/** How far the snapshot is that a replicator or a snapshotter takes; null while there is none under way. */
export async function fetchUpload(url: string, options: AskOptions): Promise<TransferProgress | null> {
  return check(underWaySchema, await askForStatus(url, options), url).upload;
}

async function askForStatus(url: string, options: AskOptions): Promise<unknown> {
  const timeout = AbortSignal.timeout(ANSWER_TIMEOUT_MS);
  const signal = options.signal === undefined ? timeout : AbortSignal.any([options.signal, timeout]);
  return await ask('GET', `${url}/v1/status`, url, { ...options, signal });
}

/** Has the replicas of a replicator compared with each other. */
export async function runDigest(url: string, options: AskOptions): Promise<DigestReport> {
  const timeout = AbortSignal.timeout(DIGEST_TIMEOUT_MS);
  const signal = options.signal === undefined ? timeout : AbortSignal.any([options.signal, timeout]);
  return check(digestSchema, await ask('POST', `${url}/v1/digest`, url, { ...options, signal }), url);
}

const snapshotSchema = z.object({
  isNew: z.boolean(),
  epoch: z.string(),
  position: z.string(),
  commitTime: text,
  takenAt: z.string(),
  fileBytes: z.number(),
  storedBytes: z.number(),
  sentBytes: z.number(),
  sentChunks: z.number(),
  tookMs: z.number(),
});

/** Has a replicator take a snapshot, and waits for as long as that takes. */
export async function requestSnapshot(
  url: string,
  options: AskOptions,
): Promise<z.output<typeof snapshotSchema>> {
  return check(snapshotSchema, await ask('POST', `${url}/v1/snapshots`, url, options), url);
}

async function ask(method: string, address: string, url: string, options: AskOptions): Promise<unknown> {
  let body: unknown;
  try {
    const response = await fetch(address, {
      method,
      headers: options.token === undefined ? {} : { authorization: `Bearer ${options.token}` },
      ...(options.signal === undefined ? {} : { signal: options.signal }),
    });
    body = await response.json().catch(() => null);
    if (response.status === 401) {
      throw new RivuletError('UNAUTHORIZED', `the replicator at ${url} refuses the token`, {
        hint: 'give the --token-file or RIVULET_TOKEN that it was started with',
      });
    }
    // An answer that took long may be an error although it began well.
    const failure = errorSchema.safeParse(body);
    if (!response.ok || failure.success) throw explain(url, response.status, failure.data);
  } catch (cause) {
    if (cause instanceof RivuletError) throw cause;
    const reason = describeFetchError(cause);
    throw new RivuletError('REPLICATOR_UNREACHABLE', `no replicator answers at ${url} (${reason})`, {
      cause,
      hint: 'is it running, and is this its --listen address?',
    });
  }
  return body;
}

/** The replicator's own error where it is one of what it was asked to do; otherwise somebody else answers. */
function explain(url: string, status: number, said: z.output<typeof errorSchema> | undefined): RivuletError {
  if (said !== undefined && Object.hasOwn(ERROR_TABLE, said.code) && status !== 404) {
    return new RivuletError(said.code as ErrorCode, `${url} answers: ${said.message}`, {
      ...(said.hint === undefined ? {} : { hint: said.hint }),
    });
  }
  return new RivuletError(
    'PROTOCOL',
    `${url} answers ${status}${said === undefined ? '' : `: ${said.message}`}`,
    { hint: 'is this the URL of a replicator, without a path behind it?' },
  );
}

function check<T>(schema: z.ZodType<T>, body: unknown, url: string): T {
  const parsed = schema.safeParse(body);
  if (parsed.success) return parsed.data;
  throw new ProtocolError(`what answers at ${url} is not a replicator of this version`, {
    hint:
      body === null || typeof body !== 'object'
        ? 'is this the address of a replicator?'
        : `use the same version on both sides (${parsed.error.issues[0]?.path.join('.')}: ${parsed.error.issues[0]?.message})`,
  });
}
