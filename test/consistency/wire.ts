/** What the checker and its app processes say to each other. */

export interface NodeConfig {
  readonly name: string;
  readonly postgres: string;
  /** Where it listens: 0 for any free port. */
  readonly port: number;
  /** Files that it keeps itself, with where each finds the replicator; none for an app behind a proxy. */
  readonly replicas: readonly { readonly file: string; readonly replicator: string }[];
  /** For an app behind a proxy: the file that a replica process beside it keeps. */
  readonly plainFile: string | null;
  /** How long a read waits for its token, ms. */
  readonly timeoutMs: number;
}

export type Step =
  | { readonly write: number }
  /** Reads the session's own row and `other`'s, from the replica of this number. */
  | { readonly read: number; readonly other: number };

/** What one session does, one step after the other. */
export interface Script {
  readonly session: number;
  readonly token: string | null;
  readonly steps: readonly Step[];
}

export interface BatchRequest {
  readonly scripts: readonly Script[];
  /** Without tokens, a read does not wait for anything. */
  readonly usesTokens: boolean;
  /** Reads as an app must not: statement by statement. */
  readonly isTorn: boolean;
}

export type StepResult =
  | { readonly written: number }
  | {
      readonly rows: readonly (readonly [session: number, version: number, sum: number])[];
      readonly replica: number;
    }
  | { readonly failed: string };

export interface ScriptResult {
  readonly session: number;
  readonly token: string | null;
  readonly results: readonly StepResult[];
}
