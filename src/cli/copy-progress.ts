import type { DownloadProgress } from '../replica/replica.ts';
import type { CopyProgress } from '../source/initial-copy.ts';
import { formatBytes, formatCount, formatDuration, progressBar } from './format.ts';

/** One line about an initial copy under way. */
export function copyProgressText(progress: CopyProgress): string {
  const { tablesDone, tablesTotal, rows, bytes, totalBytes, doneBytes, etaMs } = progress;
  const share = totalBytes === 0 ? 0 : doneBytes / totalBytes;
  const eta = etaMs === null ? '' : `, about ${formatDuration(etaMs)} left`;
  return `copying ${progressBar(share)}  tables ${tablesDone}/${tablesTotal}, ${formatCount(rows)} rows, ${formatBytes(bytes)}${eta}`;
}

/** Before that nobody can tell how long it will take, ms. */
const FIRST_ESTIMATE_MS = 1_000;

/** One line about bytes on their way; `what` is done with them, `elapsedMs` since it began. */
export function transferProgressText(
  what: string,
  { bytes, totalBytes }: DownloadProgress,
  elapsedMs: number,
): string {
  const estimate =
    elapsedMs < FIRST_ESTIMATE_MS || bytes === 0
      ? ''
      : `, ${formatBytes((bytes * 1000) / elapsedMs)}/s, ${formatDuration((elapsedMs * (totalBytes - bytes)) / bytes)} left`;
  return `${what} ${progressBar(totalBytes === 0 ? 0 : bytes / totalBytes)}  ${formatBytes(bytes)} of ${formatBytes(totalBytes)}${estimate}`;
}
