import type { CopyProgress } from '../source/initial-copy.ts';
import { formatBytes, formatCount, formatDuration } from './format.ts';

const BAR_COLUMNS = 20;

/** One line about an initial copy under way. */
export function copyProgressText(progress: CopyProgress): string {
  const { tablesDone, tablesTotal, rows, bytes, totalBytes, doneBytes, etaMs } = progress;
  const share = totalBytes === 0 ? 0 : Math.min(1, doneBytes / totalBytes);
  const filled = Math.round(share * BAR_COLUMNS);
  const bar = '█'.repeat(filled) + '░'.repeat(BAR_COLUMNS - filled);
  const eta = etaMs === null ? '' : `, about ${formatDuration(etaMs)} left`;
  return `copying ${bar} ${Math.floor(share * 100)}%  tables ${tablesDone}/${tablesTotal}, ${formatCount(rows)} rows, ${formatBytes(bytes)}${eta}`;
}
