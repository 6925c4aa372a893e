/** A moment in the life of a `rivulet` process at which it is to die, as if by `kill -9`. */
export type CrashPoint =
  | {
      /** A statement that SQLite is about to run, or has run. */
      readonly at: 'statement';
      readonly when: 'before' | 'after';
      /** Regular expressions: of the statement, and of the database's file name. */
      readonly sql: string;
      readonly file: string;
      readonly nth?: number;
    }
  | {
      /** The standby status that would tell Postgres of the nth batch appended to the log. */
      readonly at: 'acknowledgement';
      readonly nth?: number;
    }
  | {
      /**
       * From that of the nth batch on NO_SYNC_RETURNS, which is said; the power fails once the file `when` is there: what
       * was appended since the last sync is gone too.
       */
      readonly at: 'power cut';
      readonly when: string;
      readonly nth?: number;
    }
  | {
      /** No death: the disk fails at the nth sync of a -wal file, once. */
      readonly at: 'failed sync';
      readonly nth?: number;
    }
  | {
      /** A rename, by the regular expression of its source. */
      readonly at: 'rename';
      readonly when: 'before' | 'after';
      readonly file: string;
      readonly nth?: number;
    }
  | {
      /** The nth write of pages beside SQLite: rows of the initial copy. */
      readonly at: 'page write';
      readonly nth?: number;
    }
  | {
      /** The nth write of an asynchronous file stream, which only downloads are. */
      readonly at: 'file write';
      readonly nth?: number;
    };

export const NO_SYNC_RETURNS = 'no sync returns';

const PRELOADED = new URL('./crash-at.ts', import.meta.url).href;

/** Environment of a process that dies at `point`, in whichever of its threads that is. */
export function crashAt(point: CrashPoint): Readonly<Record<string, string>> {
  return {
    NODE_OPTIONS: `--import ${PRELOADED}`,
    RIVULET_TEST_CRASH_AT: JSON.stringify(point),
  };
}
