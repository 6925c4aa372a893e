import { createReadStream, createWriteStream, rmSync, statSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { pipeline } from 'node:stream/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { ProtocolError, RivuletError } from '../errors.ts';
import { explainFileError } from '../store/download-error.ts';
import { reconnectDelayMs } from './follower-client.ts';
import type { HttpLink } from './http-link.ts';
import { formatChecksum, PageChecksum } from './page-checksum.ts';
import { readError } from './read-error.ts';

/** What the replicator says of its snapshot before it sends it. */
export interface SnapshotFacts {
  readonly epoch: string;
  readonly lsn: string;
  readonly bytes: number;
  readonly systemIdentifier: string | null;
  readonly databaseName: string | null;
}

export interface DownloadOptions {
  readonly link: HttpLink;
  /** Where the file goes; what stands there is overwritten. */
  readonly file: string;
  readonly signal: AbortSignal;
  /** Whether the one before was whole, and the log did not go with it: the replicator is told. */
  readonly wasUseless?: boolean;
  /** Before anything is written. Throws to refuse. */
  readonly accept: (facts: SnapshotFacts) => void;
  readonly onProgress: (progress: { readonly bytes: number; readonly totalBytes: number }) => void;
  /** It broke or there is none yet, and is tried again. */
  readonly onRetry: (reason: RivuletError, retryInMs: number) => void;
}

const PROGRESS_INTERVAL_MS = 500;

const SQLITE_HEADER = Buffer.from('SQLite format 3\0');

/**
 * Downloads the replicator's snapshot, for as long as it takes. A connection that broke is taken up where it
 * was, as long as the replicator still has the same snapshot (If-Range). The file is complete and synced when
 * this resolves; whether it is a replica is for whoever opens it to check.
 */
export async function downloadSnapshot(options: DownloadOptions): Promise<OfferedSnapshot> {
  const { file, signal, onRetry, wasUseless = false } = options;
  rmSync(file, { force: true });
  const partial: Partial = { etag: null, bytes: 0, checksum: new PageChecksum(), isDoubted: wasUseless };
  for (let attempt = 0; ; attempt++) {
    const before = partial.bytes;
    let hasCome = false;
    try {
      const facts = await downloadRest(options, partial);
      hasCome = true;
      await check(file, facts, partial.checksum);
      return facts;
    } catch (cause) {
      signal.throwIfAborted();
      const error = explain(cause);
      if (error.recovery === 'stop' && error.code !== 'UNAUTHORIZED') throw error;
      if (error.code === 'SNAPSHOT_CORRUPT') partial.isDoubted = true;
      // What a sync that failed had to write may be lost, and the next one would not say so.
      if (hasCome || error.code === 'SNAPSHOT_CORRUPT') beginAnew(partial);
      else if (partial.bytes > before) attempt = 0;
      const retryInMs = reconnectDelayMs(attempt);
      onRetry(error, retryInMs);
      await delay(retryInMs, undefined, { signal });
    }
  }
}

export interface OfferedSnapshot extends SnapshotFacts {
  /** See PageChecksum. */
  readonly checksum: string;
}

interface Partial {
  etag: string | null;
  bytes: number;
  /** Of the first `bytes` bytes. */
  checksum: PageChecksum;
  /** What came before was not what the replicator had said: it is told, and looks at its own file. */
  isDoubted: boolean;
}

function beginAnew(partial: Partial): void {
  partial.etag = null;
  partial.bytes = 0;
}

async function downloadRest(
  { link, file, signal, accept, onProgress }: DownloadOptions,
  partial: Partial,
): Promise<OfferedSnapshot> {
  const isRest = partial.etag !== null && partial.bytes > 0;
  const headers = isRest ? { range: `bytes=${partial.bytes}-`, 'if-range': partial.etag! } : {};
  const { response, close } = await link.get(partial.isDoubted ? 'v1/snapshot?damaged' : 'v1/snapshot', {
    signal,
    headers,
  });
  try {
    if (response.statusCode === 416 && isRest) {
      const says = `${link.base.origin} has no more of the snapshot than the ${partial.bytes} bytes that are here`;
      beginAnew(partial);
      throw new ProtocolError(says);
    }
    if (response.statusCode !== 200 && response.statusCode !== 206)
      throw await readError(response, link.base);
    const header = (name: string): string | null => (response.headers[name] as string | undefined) ?? null;
    const from = response.statusCode === 206 ? partial.bytes : 0;
    const facts: OfferedSnapshot = {
      epoch: header('rivulet-epoch') ?? '',
      lsn: header('rivulet-lsn') ?? '',
      bytes: from + Number(header('content-length') ?? Number.NaN),
      checksum: header('rivulet-checksum') ?? '',
      systemIdentifier: header('rivulet-system'),
      databaseName:
        header('rivulet-database') === null ? null : decodeURIComponent(header('rivulet-database')!),
    };
    if (facts.epoch === '' || facts.lsn === '' || Number.isNaN(facts.bytes))
      throw new RivuletError(
        'SNAPSHOT_CORRUPT',
        `${link.base.origin} answers with something else than a snapshot`,
        {
          hint: 'is this the address of a replicator?',
        },
      );
    accept(facts);
    partial.etag = header('etag');
    partial.bytes = from;
    if (from === 0) partial.checksum = new PageChecksum();
    const output = createWriteStream(file, {
      flags: from === 0 ? 'w' : 'r+',
      start: from,
      highWaterMark: 1024 * 1024,
    });
    let shownAtMs = 0;
    let heardAtMs = performance.now();
    const silence = setInterval(() => {
      if (performance.now() - heardAtMs > 10_000) response.destroy(new Error('nothing came for 10 s'));
    }, 1000);
    try {
      await pipeline(
        response,
        async function* (chunks: AsyncIterable<Buffer>) {
          for await (const chunk of chunks) {
            heardAtMs = performance.now();
            partial.bytes += chunk.length;
            partial.checksum.update(chunk);
            if (heardAtMs - shownAtMs > PROGRESS_INTERVAL_MS) {
              shownAtMs = heardAtMs;
              onProgress({ bytes: partial.bytes, totalBytes: facts.bytes });
            }
            yield chunk;
          }
        },
        output,
      );
    } catch (error) {
      // What is in the file counts, not what was on its way there.
      const isAllThere = sizeOf(file) === partial.bytes;
      if (!isAllThere) {
        partial.bytes = sizeOf(file);
        partial.checksum = await checksumOf(file, partial.bytes);
      }
      throw error;
    } finally {
      clearInterval(silence);
    }
    onProgress({ bytes: partial.bytes, totalBytes: facts.bytes });
    return facts;
  } finally {
    close();
  }
}

async function check(file: string, facts: OfferedSnapshot, checksum: PageChecksum): Promise<void> {
  const handle = await open(file, 'r+');
  try {
    const { size } = await handle.stat();
    const header = Buffer.alloc(SQLITE_HEADER.length);
    await handle.read(header, 0, header.length, 0);
    if (size !== facts.bytes || !header.equals(SQLITE_HEADER)) {
      throw new RivuletError(
        'SNAPSHOT_CORRUPT',
        `the snapshot came damaged: ${size} of ${facts.bytes} bytes`,
        { facts: { file } },
      );
    }
    if (formatChecksum(checksum.sum) !== facts.checksum) {
      throw new RivuletError(
        'SNAPSHOT_CORRUPT',
        'the snapshot came damaged: its content is not what the replicator wrote',
        { facts: { file } },
      );
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Of the file's first `bytes` bytes. */
async function checksumOf(file: string, bytes: number): Promise<PageChecksum> {
  const checksum = new PageChecksum();
  if (bytes === 0) return checksum;
  const input = createReadStream(file, { highWaterMark: 1024 * 1024, end: bytes - 1 });
  for await (const chunk of input) checksum.update(chunk);
  return checksum;
}

function sizeOf(file: string): number {
  return statSync(file, { throwIfNoEntry: false })?.size ?? 0;
}

function explain(cause: unknown): RivuletError {
  if (cause instanceof RivuletError) return cause;
  const ofFile = explainFileError(cause);
  if (ofFile !== null) return ofFile;
  const { message } = cause as { message?: string };
  return new RivuletError('REPLICATOR_UNREACHABLE', `the download broke: ${message ?? String(cause)}`, {
    cause,
  });
}
