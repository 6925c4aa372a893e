import type { KeeperEvents } from '../../src/replica/replica-keeper.ts';

/** What a keeper says, heard by nobody but for what is given. */
export function keeperEvents(heard: Partial<KeeperEvents> = {}): KeeperEvents {
  const ignore = (): void => undefined;
  return {
    onFile: ignore,
    onApplied: ignore,
    onState: ignore,
    onProgress: ignore,
    onHead: ignore,
    onCurrent: ignore,
    onPinned: ignore,
    onLocal: ignore,
    onMaking: ignore,
    onLog: ignore,
    ...heard,
  };
}
