import { hash } from 'node:crypto';
import { z } from 'zod';
import { FORMAT_VERSION } from '../change/frame.ts';
import { RivuletError } from '../errors.ts';
import { formatLsn, type Lsn, parseLsn } from '../lsn.ts';

/** Raised whenever an older program could misread what is in a store; docs/formats.md shows it as tables. */
export const STORE_FORMAT_VERSION = 1;
export const MANIFEST_KEY = 'manifest.json';
/** As of the newest snapshot: for the day on which the manifest itself is damaged. */
export const MANIFEST_BACKUP_KEY = 'manifest-backup.json';

const FORMAT = 'rivulet-store';

const lsn = z.string().transform((text, context): Lsn => {
  try {
    return parseLsn(text);
  } catch {
    context.addIssue({ code: 'custom', message: 'not an LSN' });
    return z.NEVER;
  }
});
const size = z.number().int().nonnegative();
const epoch = z.string().regex(/^[\w-]{1,100}$/);
/** ISO 8601, by the clock of the writer. */
const time = z.iso.datetime();
/** `2026-11-21 03:00:00.123456Z`, by the clock of Postgres: as text in the order of time. */
const commitTime = z.string().regex(/^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}Z$/);

/** An object that is compressed with zstd and named by the SHA-256 of what is inside. */
const blob = z.object({ hash: z.string().regex(/^[0-9a-f]{64}$/), bytes: size, storedBytes: size });

const snapshot = z.object({
  epoch,
  position: lsn,
  /** Of the newest transaction in it. */
  commitTime: commitTime.nullable(),
  takenAt: time,
  /** Format of the replica file inside. */
  replicaVersion: z.number().int(),
  fileBytes: size,
  pageBytes: size,
  /** What all its chunks take in the store. */
  storedBytes: size,
  /** See ChunkList. */
  chunkList: blob,
  /** When every object of it had been read back; null: not yet. */
  verifiedAt: time.nullable(),
});

const segment = z.object({
  epoch,
  /** It holds the transactions that end behind `from`, up to `to`. */
  from: lsn,
  to: lsn,
  firstCommitTime: commitTime,
  lastCommitTime: commitTime,
  transactions: size,
  /** Format of the frames inside. */
  frameVersion: z.number().int(),
  /** In order; more than one only where a single transaction is larger than a part. */
  parts: z.array(blob).min(1),
});

const segmentList = z.object({
  epoch,
  from: lsn,
  to: lsn,
  firstCommitTime: commitTime,
  lastCommitTime: commitTime,
  count: size,
  list: blob,
});

const removal = z.object({
  at: time,
  /** Its objects are being deleted: nothing may be built on them any more. */
  isDeleting: z.boolean(),
  snapshots: z.array(snapshot),
  segmentLists: z.array(segmentList),
  segments: z.array(segment),
});

const manifest = z.object({
  /** Rises by one with every replacement. */
  sequence: z.number().int().positive(),
  /** Who writes: whoever starts to takes the next generation, and one of an older generation stops. */
  writer: z.object({ id: z.string().regex(/^[0-9a-f]+$/), generation: z.number().int().nonnegative() }),
  updatedAt: time,
  /**
   * Who takes the snapshots: null, the writer itself; otherwise a process of its own, which takes the next generation
   * when it starts. Generation 0: none has come yet.
   */
  snapshotter: z
    .object({ id: z.string().regex(/^[0-9a-f]+$/), generation: z.number().int().nonnegative() })
    .nullable()
    .default(null),
  source: z.object({ systemIdentifier: z.string(), database: z.string() }),
  /** Up to here everything is in segments, at that time; nothing published lies between the last segment and this. */
  archived: z.object({ epoch, position: lsn, at: time }).nullable(),
  /** Where a replicator that has lost its disk goes on; null: it would have to make a new copy. */
  resume: z
    .object({
      epoch,
      position: lsn,
      timeline: z.number().int(),
      slot: z.string(),
      publication: z.string(),
      /** The source's own state as of this position. */
      state: blob,
    })
    .nullable(),
  /** Oldest first, as are all lists here. */
  snapshots: z.array(snapshot),
  /** Older segments, in objects of their own. */
  segmentLists: z.array(segmentList),
  segments: z.array(segment),
  /** No longer to be used, but still there for whoever has begun to. */
  removed: z.array(removal),
});

export type Blob = z.output<typeof blob>;
export type Snapshot = z.output<typeof snapshot>;
export type Segment = z.output<typeof segment>;
export type SegmentList = z.output<typeof segmentList>;
export type Removal = z.output<typeof removal>;
/** The one mutable object of a store: it names all others, and nothing is found in another way. */
export type Manifest = z.output<typeof manifest>;

const envelope = z.object({ format: z.literal(FORMAT), version: z.number().int() });

export function encodeManifest(value: Manifest): Buffer {
  return seal(value);
}

/** Throws SNAPSHOT_CORRUPT, or VERSION_MISMATCH for one of a newer program. */
export function decodeManifest(bytes: Buffer, where: string): Manifest {
  return unseal(bytes, manifest, where);
}

const segments = z.array(segment);

/** What a segment list's object holds. */
export function encodeSegments(value: readonly Segment[]): Buffer {
  return seal(value);
}

export function decodeSegments(bytes: Buffer, where: string): readonly Segment[] {
  return unseal(bytes, segments, where);
}

/** A replica file as the chunks that it was cut into. */
export interface ChunkList {
  /** Size of every chunk but the last. */
  readonly chunkBytes: number;
  readonly fileBytes: number;
  readonly chunks: readonly ChunkName[];
}

/** Hash of the content, and what it takes in the store. */
export type ChunkName = readonly [hash: string, storedBytes: number];

const chunkList = z.object({
  chunkBytes: size.positive(),
  fileBytes: size,
  chunks: z.array(z.tuple([blob.shape.hash, size])),
});

export function encodeChunkList(value: ChunkList): Buffer {
  return seal(value);
}

export function decodeChunkList(bytes: Buffer, where: string): ChunkList {
  const list = unseal(bytes, chunkList, where);
  if (list.chunks.length !== Math.ceil(list.fileBytes / list.chunkBytes))
    throw damaged(where, 'its chunks do not make up the file');
  return list;
}

/** The i-th chunk of a list as an object. */
export function chunkAt({ chunkBytes, fileBytes, chunks }: ChunkList, index: number): Blob {
  const [name, storedBytes] = chunks[index]!;
  return { hash: name, storedBytes, bytes: Math.min(chunkBytes, fileBytes - index * chunkBytes) };
}

/** Names a snapshot for people and in messages. */
export function describeSnapshot({ epoch: of, position }: Pick<Snapshot, 'epoch' | 'position'>): string {
  return `${formatLsn(position)} of epoch ${of}`;
}

export function isSameSnapshot(a: Snapshot, b: Snapshot): boolean {
  return a.epoch === b.epoch && a.position === b.position && a.chunkList.hash === b.chunkList.hash;
}

/** Refuses what a newer program has written into a store of this version. */
export function checkFrameVersion({ frameVersion, from, to }: Segment, where: string): void {
  if (frameVersion <= FORMAT_VERSION) return;
  throw new RivuletError(
    'VERSION_MISMATCH',
    `the segment ${formatLsn(from)} to ${formatLsn(to)} in ${where} has frames of version ${frameVersion}, this program knows ${FORMAT_VERSION}`,
    { hint: 'use the version of rivulet that wrote it, or a newer one' },
  );
}

function seal(body: unknown): Buffer {
  const text = JSON.stringify(body, (_key, value: unknown) =>
    typeof value === 'bigint' ? formatLsn(value) : value,
  );
  const head = JSON.stringify({ format: FORMAT, version: STORE_FORMAT_VERSION, hash: hash('sha256', text) });
  return Buffer.from(`${head.slice(0, -1)},"body":${text}}\n`);
}

function unseal<T>(bytes: Buffer, schema: z.ZodType<T>, where: string): T {
  let parsed: Record<string, unknown>;
  try {
    parsed = JSON.parse(bytes.toString()) as Record<string, unknown>;
  } catch (cause) {
    throw damaged(where, 'it is not JSON', cause);
  }
  const head = envelope.safeParse(parsed);
  if (!head.success) throw damaged(where, 'it is not of a store of rivulet');
  if (head.data.version > STORE_FORMAT_VERSION) {
    throw new RivuletError(
      'VERSION_MISMATCH',
      `${where} has format version ${head.data.version}, this program knows ${STORE_FORMAT_VERSION}`,
      { hint: 'use the version of rivulet that wrote it, or a newer one' },
    );
  }
  if (hash('sha256', JSON.stringify(parsed.body)) !== parsed.hash)
    throw damaged(where, 'its checksum is wrong');
  const body = schema.safeParse(parsed.body);
  if (body.success) return body.data;
  const issue = body.error.issues[0];
  throw damaged(where, `${issue?.path.join('.')}: ${issue?.message}`);
}

function damaged(where: string, says: string, cause?: unknown): RivuletError {
  return new RivuletError('SNAPSHOT_CORRUPT', `${where} is damaged: ${says}`, { cause });
}
