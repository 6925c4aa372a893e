import type { ReplicaDigest } from '../change/table-digest.ts';
import type { Lsn } from '../lsn.ts';

export interface FollowRequest {
  /** Stays the same for one file. */
  readonly id: string;
  readonly name: string;
  readonly epoch: string;
  readonly position: Lsn;
  /** Whether it makes digests when they are announced. */
  readonly digests: boolean;
}

export interface FollowerReport {
  readonly name: string;
  readonly position: Lsn;
  readonly lagMs: { readonly p50: number | null; readonly p99: number | null; readonly last: number | null };
  /** Of a relay: who follows it, as its status shows them. */
  readonly followers?: readonly object[];
}

export interface StreamHandlers {
  /** Bytes of the stream, cut anywhere. */
  onBytes(bytes: Buffer): void;
  /** The stream is over, for this reason; called once, unless it was closed from here. */
  onEnd(error: Error): void;
}

export interface LinkStream {
  /** So many bytes were applied: a link without flow control of its own may let more come. */
  consumed(bytes: number): void;
  close(): void;
}

/** The way to a replicator: HTTP, or a port to another thread of this process. */
export interface FollowerLink {
  /** Rejects with the replicator's own error, or REPLICATOR_UNREACHABLE. */
  open(request: FollowRequest, handlers: StreamHandlers, signal: AbortSignal): Promise<LinkStream>;
  /** Best effort: a report that is lost is followed by the next. Gives how long to wait for that, ms, if it is told. */
  report(id: string, report: FollowerReport): Promise<number | null>;
  /** The digest that was announced in the stream. Best effort. */
  digest(id: string, digest: ReplicaDigest): Promise<void>;
  /** Somebody waits: asks for the server's position at once. Best effort. */
  hasten(): Promise<void>;
  close(): void;
}
