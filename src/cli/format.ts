import { stripVTControlCharacters, styleText } from 'node:util';

const SIZES = ['B', 'kB', 'MB', 'GB', 'TB'] as const;

/** 1536 -> '1.5 kB', in powers of 1024 as Postgres prints them. */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (Math.abs(value) >= 1024 && unit < SIZES.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(value < 10 ? 1 : 0)} ${SIZES[unit]}`;
}

/** 90_000 -> '1m 30s'; below a second in ms, with the digits that matter. */
export function formatDuration(ms: number): string {
  if (ms < 1000) return formatMs(ms);
  const seconds = Math.round(ms / 1000);
  if (ms < 10_000) return `${(ms / 1000).toFixed(1)} s`;
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m ${seconds % 60}s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 24 * 60) return `${Math.floor(minutes / 60)}h ${minutes % 60}m`;
  return `${Math.floor(minutes / (24 * 60))}d ${Math.floor(minutes / 60) % 24}h`;
}

/** Milliseconds with about two significant digits. */
export function formatMs(ms: number): string {
  if (ms < 0.1) return `${Math.round(ms * 1000)} µs`;
  if (ms < 10) return `${ms.toFixed(ms < 1 ? 2 : 1)} ms`;
  return `${Math.round(ms)} ms`;
}

export function formatCount(count: number): string {
  // Not toLocaleString(): its first call takes 20 ms, in the middle of a copy.
  return String(Math.round(count)).replace(/\B(?=(\d{3})+$)/g, ',');
}

const BAR_COLUMNS = 20;

/** How much of a long job is done (0 to 1): a bar and a percentage. */
export function progressBar(share: number): string {
  const done = Math.min(1, Math.max(0, share));
  const filled = Math.round(done * BAR_COLUMNS);
  return `${'█'.repeat(filled)}${'░'.repeat(BAR_COLUMNS - filled)} ${Math.floor(done * 100)}%`;
}

export type Style = Parameters<typeof styleText>[0];

/** Colours where the stream shows them and NO_COLOR does not forbid it; otherwise the text as it is. */
export function paint(enabled: boolean, style: Style, text: string): string {
  return enabled ? styleText(style, text, { validateStream: false }) : text;
}

export function wantsColour(stream: { readonly isTTY?: boolean }): boolean {
  return stream.isTTY === true && (process.env.NO_COLOR ?? '') === '' && process.env.TERM !== 'dumb';
}

/** Columns side by side, as wide as their widest cell; cells may hold colour codes. `right`: flushed right. */
export function formatTable(rows: readonly (readonly string[])[], right: readonly number[] = []): string[] {
  const width = (cell: string): number => stripVTControlCharacters(cell).length;
  const widths: number[] = [];
  for (const row of rows) {
    for (const [column, cell] of row.entries()) widths[column] = Math.max(widths[column] ?? 0, width(cell));
  }
  return rows.map((row) =>
    row
      .map((cell, column) => {
        const padding = ' '.repeat(widths[column]! - width(cell));
        if (right.includes(column)) return padding + cell;
        return column === row.length - 1 ? cell : cell + padding;
      })
      .join('  '),
  );
}
