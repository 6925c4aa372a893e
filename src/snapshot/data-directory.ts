import { accessSync, constants, mkdirSync, statSync } from 'node:fs';
import { RivuletError } from '../errors.ts';

/** Makes a --data directory if it is missing. Throws FILE_UNUSABLE. */
export function makeDataDirectory(dir: string): void {
  try {
    mkdirSync(dir, { recursive: true });
    if (!statSync(dir).isDirectory()) throw new Error('it is not a directory');
    accessSync(dir, constants.W_OK | constants.X_OK);
  } catch (cause) {
    throw new RivuletError(
      'FILE_UNUSABLE',
      `the data directory ${dir} cannot be used: ${(cause as Error).message}`,
      { cause, hint: 'name a directory of its own with --data, where this user may write' },
    );
  }
}
