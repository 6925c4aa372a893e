import { asRivuletError, isDiskFull, RivuletError } from '../errors.ts';

/** Until somebody changes something, these come again. */
const NO_USE: ReadonlySet<unknown> = new Set(['EACCES', 'EROFS', 'EPERM', 'ENOENT', 'ENOTDIR', 'EISDIR']);

/** What the file system says of a file that a snapshot is downloaded into, in our words; null: it is not its. */
export function explainFileError(cause: unknown): RivuletError | null {
  if (cause instanceof RivuletError) return null;
  if (isDiskFull(cause)) {
    return new RivuletError('DISK_FULL', 'no space is left for the snapshot', {
      cause,
      hint: 'free some space: the download goes on by itself',
    });
  }
  const { code, message } = cause as { readonly code?: unknown; readonly message?: string };
  return NO_USE.has(code)
    ? new RivuletError('FILE_UNUSABLE', `the snapshot cannot be written: ${message}`, { cause })
    : null;
}

/** The same, of what can be nothing else. */
export function explainDownloadError(cause: unknown): RivuletError {
  return explainFileError(cause) ?? asRivuletError(cause, 'the snapshot cannot be written');
}
