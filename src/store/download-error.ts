import { asRivuletError, isDiskFull, RivuletError } from '../errors.ts';

/** Until somebody changes something, these come again. */
const NO_USE: ReadonlySet<unknown> = new Set(['EACCES', 'EROFS', 'EPERM', 'ENOENT', 'ENOTDIR', 'EISDIR']);

/** What the file system says of a file that a snapshot is downloaded into, in our words. */
export function explainDownloadError(cause: unknown): RivuletError {
  if (isDiskFull(cause)) {
    return new RivuletError('DISK_FULL', 'no space is left for the snapshot', {
      cause,
      hint: 'free some space: the download goes on by itself',
    });
  }
  const { code, message } = cause as { readonly code?: unknown; readonly message?: string };
  if (!(cause instanceof RivuletError) && NO_USE.has(code))
    return new RivuletError('FILE_UNUSABLE', `the snapshot cannot be written: ${message}`, { cause });
  return asRivuletError(cause, 'the snapshot cannot be written');
}
