import { formatLsn } from './lsn.ts';

/** What a supervisor does about an error: try again, start from a new snapshot, or give up until a human acts. */
export type Recovery = 'retry' | 'resnapshot' | 'stop';

export interface ErrorDetails {
  /** One sentence for the operator: what to do about it. */
  readonly hint?: string;
  readonly cause?: unknown;
  /** Facts that belong to the error (slot, LSNs, relation, file); a bigint is an LSN. Never a password, key or token. */
  readonly facts?: Readonly<Record<string, string | number | bigint | boolean | null>>;
}

/** Process exit codes, as README documents them. */
export const EXIT = { done: 0, failed: 1, usage: 2, timeout: 3, different: 4 } as const;

/**
 * Base of every error that Rivulet raises on purpose. `code` is stable; README lists all of them and a test
 * keeps that list equal to ERROR_TABLE.
 */
export class RivuletError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;
  readonly facts: NonNullable<ErrorDetails['facts']>;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = new.target.name;
    this.code = code;
    this.hint = details.hint;
    this.facts = details.facts ?? {};
  }

  get recovery(): Recovery {
    return ERROR_TABLE[this.code].recovery;
  }

  get exitCode(): number {
    return ERROR_TABLE[this.code].exit;
  }

  get httpStatus(): number {
    return ERROR_TABLE[this.code].http;
  }

  /** As web frameworks look for it. */
  get statusCode(): number {
    return this.httpStatus;
  }

  /** What JSON.stringify() shows, in an answer of the app, say: LSNs are text; neither cause nor stack. */
  toJSON(): SerializedError {
    const { code, message, hint, recovery } = this;
    const facts = Object.entries(this.facts).map(([name, value]) => [
      name,
      typeof value === 'bigint' ? formatLsn(value) : value,
    ]);
    return { code, message, hint, recovery, facts: Object.fromEntries(facts) };
  }
}

/** An error as JSON has it. */
export interface SerializedError {
  readonly code: ErrorCode;
  readonly message: string;
  readonly hint: string | undefined;
  readonly recovery: Recovery;
  readonly facts: Readonly<Record<string, string | number | boolean | null>>;
}

/** The one table from code to recovery, exit code and HTTP status. */
export const ERROR_TABLE = {
  CONFIG: {
    recovery: 'stop',
    exit: EXIT.usage,
    http: 400,
    says: 'a flag, environment variable, config file, URL or argument is wrong',
  },
  POSTGRES_UNREACHABLE: {
    recovery: 'retry',
    exit: EXIT.failed,
    http: 503,
    says: 'Postgres does not answer, or the connection broke',
  },
  POSTGRES_AUTH: {
    recovery: 'stop',
    exit: EXIT.failed,
    http: 503,
    says: 'Postgres refused the user, the password or the database',
  },
  POSTGRES_ERROR: { recovery: 'retry', exit: EXIT.failed, http: 503, says: 'Postgres refused a statement' },
  SERVER_UNSUITABLE: {
    recovery: 'stop',
    exit: EXIT.failed,
    http: 503,
    says: 'the server lacks something: wal_level, version, a free slot or WAL sender',
  },
  PRIVILEGE: { recovery: 'stop', exit: EXIT.failed, http: 503, says: 'the Postgres user lacks a privilege' },
  PUBLICATION: {
    recovery: 'stop',
    exit: EXIT.failed,
    http: 503,
    says: 'the publication is missing or names tables that do not exist',
  },
  REPLICA_IDENTITY: {
    recovery: 'stop',
    exit: EXIT.failed,
    http: 503,
    says: 'a table cannot be given a usable replica identity',
  },
  SLOT_IN_USE: {
    recovery: 'retry',
    exit: EXIT.failed,
    http: 503,
    says: 'another process is reading from the replication slot',
  },
  SLOT_NOT_OURS: {
    recovery: 'stop',
    exit: EXIT.failed,
    http: 409,
    says: 'the replication slot was made for another data directory',
  },
  SLOT_LOST: {
    recovery: 'resnapshot',
    exit: EXIT.failed,
    http: 503,
    says: 'the replication slot is gone or invalidated',
  },
  SLOT_CREATION_BLOCKED: {
    recovery: 'retry',
    exit: EXIT.timeout,
    http: 503,
    says: 'a long transaction keeps the publication or the slot from being made',
  },
  TEARDOWN_BLOCKED: {
    recovery: 'retry',
    exit: EXIT.timeout,
    http: 503,
    says: 'long transactions keep teardown from its last steps',
  },
  UNSUPPORTED_SCHEMA_CHANGE: {
    recovery: 'resnapshot',
    exit: EXIT.failed,
    http: 503,
    says: 'a schema change cannot be followed live',
  },
  PROTOCOL: {
    recovery: 'retry',
    exit: EXIT.failed,
    http: 502,
    says: 'bytes that do not follow the protocol or the format',
  },
  VERSION_MISMATCH: {
    recovery: 'stop',
    exit: EXIT.failed,
    http: 426,
    says: 'the other side, or a file, has a format version that this one does not know',
  },
  CHANGE_TOO_LONG: {
    recovery: 'resnapshot',
    exit: EXIT.failed,
    http: 503,
    says: 'a change is longer than Postgres can send',
  },
  POSITION_GAP: {
    recovery: 'resnapshot',
    exit: EXIT.failed,
    http: 409,
    says: 'a transaction between two positions is missing',
  },
  POSITION_TOO_OLD: {
    recovery: 'resnapshot',
    exit: EXIT.failed,
    http: 410,
    says: 'the log no longer reaches back to this position',
  },
  POSITION_AHEAD: {
    recovery: 'resnapshot',
    exit: EXIT.failed,
    http: 409,
    says: 'the follower is ahead of the log',
  },
  EPOCH_MISMATCH: {
    recovery: 'resnapshot',
    exit: EXIT.failed,
    http: 409,
    says: 'positions of two different histories',
  },
  ROW_MISSING: {
    recovery: 'resnapshot',
    exit: EXIT.failed,
    http: 500,
    says: 'a row to update or delete is not there: the file has diverged',
  },
  SNAPSHOT_CORRUPT: {
    recovery: 'resnapshot',
    exit: EXIT.failed,
    http: 502,
    says: 'a snapshot or a file under construction is damaged',
  },
  FILE_UNUSABLE: {
    recovery: 'stop',
    exit: EXIT.failed,
    http: 500,
    says: 'a file or directory cannot be used: not SQLite, not ours, read-only, another database',
  },
  FILE_LOCKED: {
    recovery: 'stop',
    exit: EXIT.failed,
    http: 500,
    says: 'another process already keeps this file or data directory',
  },
  DISK_FULL: { recovery: 'retry', exit: EXIT.failed, http: 507, says: 'no space is left on the device' },
  LISTEN: {
    recovery: 'stop',
    exit: EXIT.failed,
    http: 500,
    says: 'the address to listen on is taken or not allowed',
  },
  UNAUTHORIZED: {
    recovery: 'stop',
    exit: EXIT.failed,
    http: 401,
    says: 'the bearer token is missing or wrong',
  },
  FOREIGN_REQUEST: {
    recovery: 'stop',
    exit: EXIT.failed,
    http: 403,
    says: 'without a bearer token: a request for another host than localhost or an IP address, or of a page of another site',
  },
  REPLICATOR_UNREACHABLE: {
    recovery: 'retry',
    exit: EXIT.failed,
    http: 503,
    says: 'the replicator does not answer, or the connection broke',
  },
  STORE_UNREACHABLE: {
    recovery: 'retry',
    exit: EXIT.failed,
    http: 503,
    says: 'the object store does not answer, or the connection broke',
  },
  STORE_REFUSED: {
    recovery: 'stop',
    exit: EXIT.failed,
    http: 503,
    says: 'the object store refuses: credentials, rights, a missing bucket or directory',
  },
  STORE_FENCED: {
    recovery: 'stop',
    exit: EXIT.failed,
    http: 409,
    says: 'a newer process writes to the object store: this one has stopped',
  },
  NOT_RESTORABLE: {
    recovery: 'stop',
    exit: EXIT.failed,
    http: 404,
    says: 'the object store has nothing that leads to this position or time',
  },
  NOT_READY: {
    recovery: 'retry',
    exit: EXIT.failed,
    http: 503,
    says: 'the answer is not there yet: the initial copy is under way',
  },
  WAIT_TIMEOUT: {
    recovery: 'retry',
    exit: EXIT.timeout,
    http: 504,
    says: 'the position was not reached in time',
  },
  TOKEN_MALFORMED: { recovery: 'stop', exit: EXIT.usage, http: 400, says: 'what was given is not a token' },
  TOKEN_FORGED: {
    recovery: 'stop',
    exit: EXIT.usage,
    http: 400,
    says: 'the signature of a token is missing or wrong',
  },
  TOKEN_IMPOSSIBLE: {
    recovery: 'stop',
    exit: EXIT.usage,
    http: 400,
    says: 'a token names a position that no server can have reached',
  },
  TOKEN_UNAVAILABLE: {
    recovery: 'retry',
    exit: EXIT.failed,
    http: 503,
    says: 'Postgres gave no token: a standby, an open transaction, no set-up, or no history yet',
  },
  TOO_MANY_WAITERS: {
    recovery: 'retry',
    exit: EXIT.failed,
    http: 503,
    says: 'more readers wait for a position than are allowed',
  },
  TOO_STALE: {
    recovery: 'retry',
    exit: EXIT.timeout,
    http: 503,
    says: 'the file is further behind than a read allows',
  },
  APP_UNREACHABLE: {
    recovery: 'retry',
    exit: EXIT.failed,
    http: 502,
    says: 'the app behind the proxy does not answer, or broke off',
  },
  CLOSED: { recovery: 'stop', exit: EXIT.failed, http: 503, says: 'the replica or replicator was closed' },
  DIFFERENT: {
    recovery: 'stop',
    exit: EXIT.different,
    http: 500,
    says: 'contents that should be equal differ',
  },
} as const satisfies Record<string, { recovery: Recovery; exit: number; http: number; says: string }>;

export type ErrorCode = keyof typeof ERROR_TABLE;

/** Wrong flags, environment, config file, URL or argument: exit code 2. */
export class ConfigError extends RivuletError {
  constructor(message: string, details?: ErrorDetails) {
    super('CONFIG', message, details);
  }
}

/** Bytes that do not follow the protocol or a format. */
export class ProtocolError extends RivuletError {
  constructor(message: string, details?: ErrorDetails) {
    super('PROTOCOL', message, details);
  }
}

/** True for SQLite's and the file system's ways of saying that the disk is full. */
export function isDiskFull(error: unknown): boolean {
  const code = (error as { code?: unknown } | null)?.code;
  return code === 'ENOSPC' || code === 'EDQUOT' || code === 'SQLITE_FULL';
}

/** What failed in a way that nobody foresaw, as an error of ours; those that are stay as they are. */
export function asRivuletError(cause: unknown, what: string): RivuletError {
  if (cause instanceof RivuletError) return cause;
  return new ProtocolError(`${what}: ${(cause as Error).message}`, { cause });
}
