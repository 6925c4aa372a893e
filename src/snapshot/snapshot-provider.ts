import type { Lsn } from '../lsn.ts';

/** A whole replica file that does not change while the lease is held. */
export interface SnapshotLease {
  readonly path: string;
  readonly epoch: string;
  readonly position: Lsn;
  /** Of all bytes of the file (see PageChecksum): whoever has read them can tell that they are what was written. */
  readonly checksum: string;
  /** May be called twice. */
  release(): void;
}

/** Where new followers get their first file. */
export interface SnapshotProvider {
  /** Throws NOT_READY while there is none. `fresh`: brought to the log's end first, if nobody else holds it. */
  acquire(options?: { readonly fresh?: boolean }): Promise<SnapshotLease>;
  /** Somebody had no use for the file: it is looked at before it is handed out again. */
  recheck(): void;
}
