import express, { type Request, type Response, Router } from 'express';
import { z } from 'zod';
import { REPORT_INTERVAL_HEADER } from '../change/frame.ts';
import { ConfigError, RivuletError } from '../errors.ts';
import { formatLsn, parseLsn } from '../lsn.ts';
import type { SnapshotLease, SnapshotProvider } from '../snapshot/snapshot-provider.ts';
import type { DigestBoard } from './digest-board.ts';
import { MAX_FOLLOWERS_KNOWN } from './follower-registry.ts';
import { HttpSink } from './http-sink.ts';
import type { Publisher } from './publisher.ts';

export interface FollowerRoutesOptions {
  readonly publisher: Publisher;
  readonly snapshots: SnapshotProvider;
  /** How far the initial copy is: shown to whoever comes too early. */
  readonly copyProgress: () => unknown;
  /** Somebody waits for a position: the source is asked for its own at once. */
  readonly hasten: () => void;
  readonly digests: DigestBoard;
}

/** Those of a relay name each of its followers, in some 300 bytes. */
const MAX_REPORT_BYTES = 4 * 1024 * 1024;
/** Some hundred bytes for each table. */
const MAX_DIGEST_BYTES = 16 * 1024 * 1024;

const followerId = z.string().regex(/^[\w.:-]{1,100}$/);
const followerName = z.string().regex(/^[^\p{C}]{1,100}$/u);
const lsn = z.string().transform((text, context) => {
  try {
    return parseLsn(text);
  } catch {
    context.addIssue({ code: 'custom', message: "an LSN such as '16/B374D848'" });
    return z.NEVER;
  }
});
const milliseconds = z.number().nullable();
const lagSummary = z.object({ p50: milliseconds, p99: milliseconds, last: milliseconds });

const streamQuery = z.object({
  epoch: z.string().regex(/^[\w-]{1,100}$/),
  lsn,
  follower: followerId,
  name: followerName.optional(),
  digests: z.literal('1').optional(),
});
const time = z.iso.datetime();
const relayedFollower = z.object({
  id: followerId,
  name: followerName,
  via: z
    .string()
    .regex(/^[^\p{C}]{1,1000}$/u)
    .nullable(),
  state: z.string().regex(/^[a-z-]{1,20}$/),
  position: z
    .string()
    .regex(/^[0-9A-F]{1,8}\/[0-9A-F]{1,8}$/i)
    .nullable(),
  lagMs: lagSummary,
  connectedAt: time,
  lastSeenAt: time,
});
const reportBody = z.object({
  name: followerName.optional(),
  lsn,
  lagMs: lagSummary.optional(),
  followers: z.array(relayedFollower).max(MAX_FOLLOWERS_KNOWN).optional(),
});

const digestBody = z.object({
  id: z.string().max(100),
  left: z.number().int().min(0),
  tables: z
    .array(
      z.object({
        table: z.string().max(300),
        rows: z.number().int().min(0),
        digest: z.string().regex(/^[0-9a-f]{16}$/),
      }),
    )
    .nullable(),
});

/** What followers ask of the replicator. */
export function followerRoutes(options: FollowerRoutesOptions): Router {
  const { publisher, snapshots } = options;
  const router = Router();

  router.get('/v1/stream', (request, response) => {
    const { epoch, lsn: position, follower: id, name, digests } = parse(streamQuery, request.query, 'query');
    orProgress(response, options, () => {
      publisher.follow(
        { id, name: name ?? id, epoch, position, digests: digests !== undefined },
        new HttpSink(response),
      );
    });
  });

  router.post('/v1/followers/:id', express.json({ limit: MAX_REPORT_BYTES }), (request, response) => {
    const id = parse(followerId, request.params.id, 'follower id');
    const { lsn: position, name, lagMs, followers } = parse(reportBody, request.body, 'report');
    publisher.report(id, {
      position,
      ...(name === undefined ? {} : { name }),
      ...(lagMs === undefined ? {} : { lagMs }),
      ...(followers === undefined ? {} : { followers }),
    });
    response.setHeader(REPORT_INTERVAL_HEADER, String(publisher.reportIntervalMs));
    response.status(204).end();
  });

  router.post('/v1/followers/:id/digest', express.json({ limit: MAX_DIGEST_BYTES }), (request, response) => {
    const id = parse(followerId, request.params.id, 'follower id');
    options.digests.take(id, parse(digestBody, request.body, 'digest'));
    response.status(204).end();
  });

  router.post('/v1/digest', async (_request, response) => {
    response.json(await options.digests.run());
  });

  router.post('/v1/hasten', (_request, response) => {
    options.hasten();
    response.status(204).end();
  });

  router.get('/v1/snapshot', async (request, response) => {
    const isDoubted = request.query.damaged !== undefined;
    if (isDoubted) snapshots.recheck();
    const lease = await snapshots.acquire({ fresh: isDoubted }).catch((error: unknown) => {
      answerProgress(response, options, error);
      return null;
    });
    if (lease === null) return;
    try {
      const { source } = publisher;
      if (source !== null) {
        response.setHeader('rivulet-system', source.systemIdentifier);
        response.setHeader('rivulet-database', encodeURIComponent(source.database));
      }
      await sendSnapshot(request, response, lease);
    } finally {
      lease.release();
    }
  });

  return router;
}

/** The file with Range and If-Range: a download that broke goes on where it was, if it is still the same file. */
function sendSnapshot(
  request: Request,
  response: Response,
  { path, epoch, position, checksum }: SnapshotLease,
): Promise<void> {
  const lsnText = formatLsn(position);
  response.setHeader('content-type', 'application/vnd.sqlite3');
  response.setHeader('cache-control', 'no-store');
  response.setHeader('rivulet-epoch', epoch);
  response.setHeader('rivulet-lsn', lsnText);
  response.setHeader('rivulet-checksum', checksum);
  response.setHeader('etag', `"${epoch}+${lsnText}"`);
  return new Promise((resolve, reject) => {
    const options = { dotfiles: 'allow', etag: false, lastModified: false, cacheControl: false } as const;
    response.sendFile(path, options, (error: Error | undefined) => {
      // A follower that hangs up is none of our errors.
      if (error === undefined || request.destroyed || response.headersSent) resolve();
      else if ((error as { status?: unknown }).status === 416) {
        response.removeHeader('content-type');
        response
          .status(416)
          .json({ code: 'PROTOCOL', message: `the snapshot has no ${request.headers.range}` });
        resolve();
      } else reject(new RivuletError('FILE_UNUSABLE', 'the snapshot cannot be read', { cause: error }));
    });
  });
}

function orProgress(response: Response, options: FollowerRoutesOptions, work: () => void): void {
  try {
    work();
  } catch (error) {
    answerProgress(response, options, error);
  }
}

/** Whoever comes before there is anything to follow is told how far it is. Other errors go their usual way. */
function answerProgress(response: Response, options: FollowerRoutesOptions, error: unknown): void {
  if (!(error instanceof RivuletError) || error.code !== 'NOT_READY') throw error;
  const { code, message, hint } = error;
  response
    .status(error.httpStatus)
    .setHeader('retry-after', '1')
    .json({ code, message, hint, progress: options.copyProgress() });
}

function parse<T>(schema: z.ZodType<T>, value: unknown, what: string): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw new ConfigError(
    `the ${what} is not what a follower sends: ${issue?.path.join('.') ?? ''} ${issue?.message ?? ''}`.trim(),
  );
}
