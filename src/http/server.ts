import express, { type Express, type Response } from 'express';
import { ConfigError, RivuletError } from '../errors.ts';
import type { DigestBoard } from '../fanout/digest-board.ts';
import type { Publisher } from '../fanout/publisher.ts';
import { followerRoutes } from '../fanout/routes.ts';
import type { Log } from '../log.ts';
import { formatLsn, parseLsn } from '../lsn.ts';
import { filePosition } from '../replica/file-position.ts';
import type { Replica } from '../replica/replica.ts';
import { isHealthy, type ReplicatorStatus } from '../replicator/status.ts';
import type { SnapshotProvider } from '../snapshot/snapshot-provider.ts';
import type { SnapshotReport } from '../snapshot/snapshot-writer.ts';
import type { Snapshotter } from '../snapshot/snapshotter.ts';
import { seenLsn } from '../token.ts';
import { requireToken } from './authorization.ts';
import { answerErrors, answerNotFound } from './error-answer.ts';
import { refuseForeign } from './foreign-request.ts';
import { type HttpServer, type ListenAddress, listen } from './listen.ts';
import { serveMetrics } from './metrics.ts';
import { replicaMetrics } from './replica-metrics.ts';
import { replicatorMetrics } from './replicator-metrics.ts';
import { snapshotterMetrics } from './snapshotter-metrics.ts';

/** What a replicator shows of itself. */
export interface ServedReplicator {
  readonly publisher: Publisher;
  readonly digests: DigestBoard;
  readonly snapshots: SnapshotProvider;
  status(): ReplicatorStatus;
  hasten(): void;
  takeSnapshot(): Promise<SnapshotReport>;
}

interface ServeOptions {
  readonly listen: ListenAddress;
  readonly token: string | undefined;
  readonly log: Log;
}

const SNAPSHOT_BEAT_MS = 10_000;
const DEFAULT_WAIT_TIMEOUT_MS = 30_000;
const MAX_WAIT_TIMEOUT_MS = 10 * 60_000;

export function serveReplicator({
  replicator,
  ...options
}: ServeOptions & { readonly replicator: ServedReplicator }): Promise<HttpServer> {
  const app = newApp(options.token);
  app.get('/healthz', (_request, response) => {
    const status = replicator.status();
    const { state, reasons } = status;
    const healthy = isHealthy(status);
    response.status(healthy ? 200 : 503).json({ healthy, state, reasons });
  });
  app.use(requireToken(options.token));
  app.use(
    followerRoutes({
      publisher: replicator.publisher,
      digests: replicator.digests,
      snapshots: replicator.snapshots,
      copyProgress: () => replicator.status().copy,
      hasten: () => replicator.hasten(),
    }),
  );
  app.get('/v1/status', (_request, response) => {
    response.json(replicator.status());
  });
  app.post('/v1/snapshots', (_request, response) =>
    answerSnapshot(response, () => replicator.takeSnapshot()),
  );
  app.get(
    '/metrics',
    serveMetrics(() => replicatorMetrics(replicator.status())),
  );
  return finish(app, options);
}

/** `source`: the replicator, where it is in this process. Reads go on without it, so it says more than it decides. */
export function serveReplica({
  replica,
  source = null,
  ...options
}: ServeOptions & {
  readonly replica: Replica;
  readonly source?: Pick<ServedReplicator, 'status'> | null;
}): Promise<HttpServer> {
  const app = newApp(options.token);
  app.get('/healthz', (_request, response) => {
    const { state, reasons, isHealthy: healthy, position } = replica.status();
    const ofSource = source?.status().reasons ?? [];
    response
      .status(healthy ? 200 : 503)
      .json({ healthy, state, reasons: [...new Set([...reasons, ...ofSource])], position });
  });
  app.use(requireToken(options.token));
  if (source !== null) {
    app.get('/v1/status', (_request, response) => {
      response.json(source.status());
    });
  }
  app.get('/status', (_request, response) => {
    response.json(replica.status());
  });
  app.get(
    '/metrics',
    serveMetrics(() => {
      const metrics = replicaMetrics(replica.status());
      if (source === null) return metrics;
      const names = new Set(metrics.map(({ name }) => name));
      return [...metrics, ...replicatorMetrics(source.status()).filter(({ name }) => !names.has(name))];
    }),
  );
  app.get('/wait', async (request, response) => {
    const { token, lsn } = request.query;
    const target = token === undefined ? parseLsn(String(lsn ?? '')) : String(token);
    const gone = new AbortController();
    response.on('close', () => gone.abort());
    await replica.waitFor(target, { timeoutMs: waitTimeout(request.query.timeout), signal: gone.signal });
    // Whoever asks may have read the file already: what it holds counts, not what this process has heard of it.
    const position = filePosition(replica.db);
    response.json({
      reached: true,
      epoch: position.epoch,
      position: formatLsn(position.lsn),
      seen: formatLsn(seenLsn(position)),
    });
  });
  return finish(app, options);
}

export function serveSnapshotter({
  snapshotter,
  ...options
}: ServeOptions & {
  readonly snapshotter: Pick<Snapshotter, 'status' | 'takeSnapshot'>;
}): Promise<HttpServer> {
  const app = newApp(options.token);
  app.get('/healthz', (_request, response) => {
    const { state, reasons, isHealthy: healthy, position } = snapshotter.status();
    response.status(healthy ? 200 : 503).json({ healthy, state, reasons, position });
  });
  app.use(requireToken(options.token));
  app.get('/v1/status', (_request, response) => {
    response.json(snapshotter.status());
  });
  app.post('/v1/snapshots', (_request, response) =>
    answerSnapshot(response, () => snapshotter.takeSnapshot()),
  );
  app.get(
    '/metrics',
    serveMetrics(() => snapshotterMetrics(snapshotter.status())),
  );
  return finish(app, options);
}

async function answerSnapshot(response: Response, take: () => Promise<SnapshotReport>): Promise<void> {
  // Clients give up a connection on which nothing moves; blanks before JSON mean nothing.
  const beat = setInterval(() => response.write(' '), SNAPSHOT_BEAT_MS);
  const report = await take()
    .catch((error: unknown) => {
      if (!response.headersSent || !(error instanceof RivuletError)) throw error;
      const { code, message, hint } = error;
      response.end(JSON.stringify({ code, message, hint }));
      return null;
    })
    .finally(() => clearInterval(beat));
  if (report === null) return;
  const { snapshot, isNew, sentBytes, sentChunks, tookMs } = report;
  const { epoch, position, commitTime, takenAt, fileBytes, storedBytes } = snapshot;
  const answer = {
    isNew,
    epoch,
    position: formatLsn(position),
    commitTime,
    takenAt,
    fileBytes,
    storedBytes,
    sentBytes,
    sentChunks,
    tookMs: Math.round(tookMs),
  };
  if (response.headersSent) response.end(JSON.stringify(answer));
  else response.json(answer);
}

function newApp(token: string | undefined): Express {
  const app = express();
  app.disable('x-powered-by');
  app.disable('etag');
  app.use(refuseForeign(token));
  return app;
}

function finish(app: Express, options: ServeOptions): Promise<HttpServer> {
  app.use(answerNotFound);
  app.use(answerErrors(options.log));
  return listen(app, options.listen, options.token);
}

/** Milliseconds, as text. */
function waitTimeout(value: unknown): number {
  if (value === undefined) return DEFAULT_WAIT_TIMEOUT_MS;
  const timeoutMs = Number(value);
  if (typeof value === 'string' && /^\d{1,9}$/.test(value) && timeoutMs <= MAX_WAIT_TIMEOUT_MS)
    return timeoutMs;
  throw new ConfigError(`timeout must be a number of milliseconds up to ${MAX_WAIT_TIMEOUT_MS}`);
}
