import type { MessagePort } from 'node:worker_threads';
import type { Lsn } from '../lsn.ts';
import type { PlainError } from '../plain-error.ts';
import type { StoreLocation } from '../store/open-store.ts';
import type { MissingLocalObject, NamedLocalObject } from './local-objects.ts';
import type { LocalSql } from './local-sql.ts';
import type { ReplicaState } from './replica-status.ts';

/** What the thread is started with. */
export interface WorkerSettings {
  readonly file: string;
  readonly id: string;
  readonly name: string;
  /** The other end is Replica's. */
  readonly port: MessagePort;
  readonly localSql: LocalSql | null;
  readonly source:
    | { readonly url: string; readonly token: string | undefined }
    | { readonly port: MessagePort };
  /** With a URL only. */
  readonly store: StoreLocation | null;
  /** Of one cell: where the last `applied` message is, see MAILBOX. */
  readonly mailbox: Int32Array;
}

/** Between two threads that share memory, so that one message after the other takes no answer. */
export const MAILBOX = {
  /** It was taken: the next may come. */
  free: 0,
  onItsWay: 1,
  /** And there is more to tell: whoever takes it asks for that. */
  hasMore: 2,
} as const;

export type WorkerRequest =
  /** From now on the file may be touched. */
  | { readonly kind: 'begin' }
  /** The last `applied` message was taken, and more had gathered behind it. */
  | { readonly kind: 'more' }
  | { readonly kind: 'hasten' }
  | { readonly kind: 'close' };

export interface LagSummary {
  readonly p50: number | null;
  readonly p99: number | null;
  readonly last: number | null;
}

export type WorkerMessage =
  | {
      readonly kind: 'file';
      readonly target: string;
      readonly epoch: string;
      readonly position: Lsn;
      /** SQLite names of the tables that are being read again. */
      readonly reloading: readonly string[];
    }
  | {
      readonly kind: 'applied';
      readonly position: Lsn;
      readonly reloading: readonly string[];
      readonly transactions: number;
      readonly tables: readonly string[];
      readonly lastLagMs: number | null;
      /** A moment of monotonicMs(): what was committed before it is in the file. Null if no transaction told. */
      readonly asOfMs: number | null;
    }
  | { readonly kind: 'state'; readonly state: ReplicaState; readonly reason: PlainError | null }
  | { readonly kind: 'lag'; readonly lag: LagSummary }
  | { readonly kind: 'head'; readonly position: Lsn }
  /** The file holds everything that Postgres had sent at this moment of monotonicMs(), if no table is read again. */
  | { readonly kind: 'current'; readonly asOfMs: number; readonly isWhole: boolean }
  | { readonly kind: 'progress'; readonly bytes: number; readonly totalBytes: number }
  | { readonly kind: 'pinned'; readonly walBytes: number }
  /** Local objects that are declared and not there. */
  | { readonly kind: 'local'; readonly missing: readonly MissingLocalObject[] }
  /** One that takes long is being made; null: no more. */
  | { readonly kind: 'making'; readonly object: NamedLocalObject | null }
  | {
      readonly kind: 'log';
      readonly level: 'info' | 'warn' | 'error';
      readonly message: string;
      readonly facts: Readonly<Record<string, unknown>>;
    }
  /** The last message: without an error the thread was closed. */
  | { readonly kind: 'ended'; readonly error: PlainError | null };
