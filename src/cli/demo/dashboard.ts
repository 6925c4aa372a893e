import { formatBytes, formatCount, formatMs, formatTable, paint, type Style } from '../format.ts';
import { type OutputStream, truncate } from '../terminal.ts';

const SPARKS = '▁▂▃▄▅▆▇█';
const SPARK_COLUMNS = 24;
const EVENTS_SHOWN = 6;

export interface ReplicaView {
  readonly name: string;
  readonly pid: number;
  readonly state: 'live' | 'catching up' | 'killed' | 'starting';
  readonly position: string | null;
  readonly lagMs: { readonly p50: number | null; readonly p99: number | null };
  readonly lagBytes: number | null;
}

export interface View {
  readonly elapsedMs: number;
  /** Null: until Ctrl-C. */
  readonly seconds: number | null;
  readonly transactionsPerSecond: number;
  readonly rowsPerSecond: number;
  readonly transactions: number;
  readonly rateHistory: readonly number[];
  readonly replicas: readonly ReplicaView[];
  readonly sqliteRead: { readonly p50: number | null; readonly p99: number | null };
  readonly postgresRead: { readonly p50: number | null; readonly p99: number | null };
  /** Notes that were saved at the example app and read from another node's file. */
  readonly saves: {
    readonly url: string;
    readonly p50: number | null;
    readonly p99: number | null;
    readonly saved: number;
    readonly missing: number;
  };
}

/**
 * Shows the demo: on a terminal a page that is painted over itself, with what happened below it; elsewhere a
 * plain line for each look and each event.
 */
export class Dashboard {
  readonly #stream: OutputStream;
  readonly #colour: boolean;
  readonly #events: string[] = [];
  #paintedLines = 0;
  #isCursorHidden = false;

  constructor(stream: OutputStream, colour: boolean) {
    this.#stream = stream;
    this.#colour = colour;
    process.once('exit', this.#showCursor);
  }

  get isLive(): boolean {
    return this.#stream.isTTY === true;
  }

  /** A line that stays. */
  say(text: string): void {
    this.clear();
    this.#stream.write(`${text}\n`);
  }

  /** A step of the way to the live part: `what`, what came of it, and the time that it took. */
  step(what: string, result: string, ms: number): void {
    this.say(
      `  ${this.#paint('green', '✔')} ${what.padEnd(26)} ${result.padEnd(46)} ${this.#paint('gray', `${(ms / 1000).toFixed(1)} s`.padStart(7))}`,
    );
  }

  /** What is under way; only where it can be taken away again. */
  working(text: string): void {
    if (this.isLive) this.#repaint([`  ${this.#paint('cyan', '…')} ${text}`]);
  }

  event(elapsedMs: number, text: string): void {
    this.#events.push(`${this.#paint('gray', clock(elapsedMs))}  ${text}`);
    if (!this.isLive) this.#stream.write(`${clock(elapsedMs)}  ${text}\n`);
  }

  show(view: View): void {
    if (this.isLive) this.#repaint(this.#page(view));
    else this.#stream.write(`${this.#plainLine(view)}\n`);
  }

  /** Takes the page away. */
  clear(): void {
    if (this.#paintedLines > 0) this.#stream.write(`\x1b[${this.#paintedLines}A\r\x1b[J`);
    this.#paintedLines = 0;
  }

  /** Leaves the page where it is; what comes next goes below it. */
  keep(): void {
    this.#paintedLines = 0;
  }

  close(): void {
    this.#showCursor();
    process.off('exit', this.#showCursor);
  }

  readonly #showCursor = (): void => {
    if (this.#isCursorHidden) this.#stream.write('\x1b[?25h');
    this.#isCursorHidden = false;
  };

  #repaint(lines: readonly string[]): void {
    // A page higher than the terminal could not be painted over: its end matters least.
    const shown = lines.slice(0, Math.max(1, (this.#stream.rows ?? 24) - 1));
    const up = this.#paintedLines > 0 ? `\x1b[${this.#paintedLines}A` : '';
    const hide = this.#isCursorHidden ? '' : '\x1b[?25l';
    this.#isCursorHidden = true;
    const columns = (this.#stream.columns ?? 80) - 1;
    // One write, each line erased to its end: nothing flickers.
    this.#stream.write(
      `${hide}${up}\r${shown.map((line) => `${truncate(line, columns)}\x1b[K\n`).join('')}\x1b[J`,
    );
    this.#paintedLines = shown.length;
  }

  #page(view: View): string[] {
    const until =
      view.seconds === null
        ? 'Ctrl-C stops the writes and compares'
        : `of ${clock(view.seconds * 1000)}, then everything is compared`;
    return [
      '',
      `  ${this.#paint('bold', 'Postgres ──▶ replicator ──▶ three replicas')}      ${this.#paint('cyan', clock(view.elapsedMs))} ${this.#paint('gray', until)}`,
      '',
      `  ${this.#paint('bold', 'writes')}    ${formatCount(view.transactionsPerSecond)} transactions/s, ${formatCount(view.rowsPerSecond)} rows/s   ${this.#paint('cyan', sparkline(view.rateHistory))}   ${this.#paint('gray', `${formatCount(view.transactions)} so far`)}`,
      '',
      ...this.#replicas(view.replicas),
      '',
      ...this.#reads(view),
      '',
      ...this.#events.slice(-EVENTS_SHOWN).map((event) => `  ${event}`),
    ];
  }

  #replicas(replicas: readonly ReplicaView[]): string[] {
    const styles: Record<ReplicaView['state'], Style> = {
      live: 'green',
      'catching up': 'yellow',
      killed: 'red',
      starting: 'yellow',
    };
    const header = ['replica', 'process', 'state      ', 'lag p50', '    p99', '  behind', 'position'];
    const rows = replicas.map((replica) => {
      const isLive = replica.state === 'live' || replica.state === 'catching up';
      return [
        replica.name,
        replica.state === 'killed' ? '–' : String(replica.pid),
        this.#paint(styles[replica.state], replica.state),
        isLive ? ms(replica.lagMs.p50) : '–',
        isLive ? ms(replica.lagMs.p99) : '–',
        replica.lagBytes === null ? '–' : formatBytes(replica.lagBytes),
        replica.position ?? '–',
      ];
    });
    return formatTable(
      [header.map((cell, index) => this.#paint(index === 0 ? 'bold' : 'gray', cell)), ...rows],
      [3, 4, 5],
    ).map((line) => `  ${line}`);
  }

  #reads({ sqliteRead, postgresRead, saves }: View): string[] {
    const factor =
      sqliteRead.p50 !== null && postgresRead.p50 !== null
        ? Math.round(postgresRead.p50 / sqliteRead.p50)
        : null;
    const rows = [
      ['the same read, by key', '    p50', '    p99', ''].map((cell, index) =>
        this.#paint(index === 0 ? 'bold' : 'gray', cell),
      ),
      [
        'SQLite, in this process',
        ms(sqliteRead.p50),
        ms(sqliteRead.p99),
        factor === null ? '' : this.#paint('green', `${factor} times faster`),
      ],
      ['Postgres, over loopback', ms(postgresRead.p50), ms(postgresRead.p99), ''],
      [
        `${this.#paint('bold', 'saved')} at ${saves.url}, read on node-1`,
        ms(saves.p50),
        ms(saves.p99),
        this.#paint(
          saves.missing === 0 ? 'green' : 'red',
          `${formatCount(saves.missing)} of ${formatCount(saves.saved)} not there`,
        ),
      ],
    ];
    return formatTable(rows, [1, 2]).map((line) => `  ${line}`);
  }

  #plainLine(view: View): string {
    const replicas = view.replicas.map((replica) =>
      replica.state === 'live' || replica.state === 'catching up'
        ? `${replica.name} ${ms(replica.lagMs.p50)}/${ms(replica.lagMs.p99)}`
        : `${replica.name} ${replica.state}`,
    );
    return (
      `${clock(view.elapsedMs)}  ${formatCount(view.transactionsPerSecond)} tx/s, ${formatCount(view.rowsPerSecond)} rows/s  ` +
      `lag p50/p99: ${replicas.join(', ')}  same read p50: SQLite ${ms(view.sqliteRead.p50)}, Postgres ${ms(view.postgresRead.p50)}  ` +
      `saved, read on node-1 p50: ${ms(view.saves.p50)}, ${view.saves.missing} of ${view.saves.saved} not there`
    );
  }

  #paint(style: Style, text: string): string {
    return paint(this.#colour, style, text);
  }
}

function ms(value: number | null): string {
  return value === null ? '–' : formatMs(value);
}

export function clock(elapsedMs: number): string {
  const seconds = Math.floor(elapsedMs / 1000);
  return `${String(Math.floor(seconds / 60)).padStart(2, '0')}:${String(seconds % 60).padStart(2, '0')}`;
}

function sparkline(values: readonly number[]): string {
  const shown = values.slice(-SPARK_COLUMNS);
  const highest = Math.max(1, ...shown);
  return shown
    .map((value) => SPARKS[Math.min(SPARKS.length - 1, Math.floor((value / highest) * SPARKS.length))])
    .join('');
}
