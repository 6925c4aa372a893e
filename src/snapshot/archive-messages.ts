import type { PlainError } from '../plain-error.ts';
import type { StoreLocation } from '../store/open-store.ts';
import type { ArchiveFacts, ArchiveSession, ArchiveSettings } from './archive-session.ts';
import type { TransferProgress } from './chunk-upload.ts';

/** What the thread is started with. */
export interface ArchiveTask {
  readonly location: StoreLocation;
  readonly settings: ArchiveSettings;
}

/** The calls that cross to the thread. */
export type ArchiveMethod = 'open' | 'append' | 'seal' | 'snapshot' | 'prune' | 'sweep';

export type ArchiveArgument<Method extends ArchiveMethod> = Parameters<ArchiveSession[Method]>[0];
export type ArchiveResult<Method extends ArchiveMethod> = Awaited<ReturnType<ArchiveSession[Method]>>;

export type ArchiveRequest =
  | { readonly kind: 'call'; readonly id: number; readonly method: ArchiveMethod; readonly argument: unknown }
  | { readonly kind: 'close' };

export type ArchiveReply =
  | {
      readonly kind: 'done';
      readonly id: number;
      readonly result: unknown;
      readonly facts: ArchiveFacts | null;
    }
  | { readonly kind: 'failed'; readonly id: number; readonly error: PlainError }
  | { readonly kind: 'progress'; readonly progress: TransferProgress }
  | {
      readonly kind: 'log';
      readonly level: 'info' | 'warn';
      readonly message: string;
      readonly facts: Readonly<Record<string, unknown>>;
    };
