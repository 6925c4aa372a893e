export {
  ConfigError,
  ERROR_TABLE,
  type ErrorCode,
  ProtocolError,
  type Recovery,
  RivuletError,
  type SerializedError,
} from './errors.ts';
export { formatLsn, type Lsn, parseLsn, sortableLsn } from './lsn.ts';
export {
  type ReadYourWritesMiddleware,
  readYourWrites,
  withReadYourWrites,
} from './read/middleware/express.ts';
export { type ReadYourWritesPlugin, readYourWritesFastify } from './read/middleware/fastify.ts';
export { type HonoMiddleware, readYourWritesFetch, readYourWritesHono } from './read/middleware/fetch.ts';
export type { CookieOptions, MiddlewareOptions } from './read/middleware/token-headers.ts';
export {
  type OnLate,
  type ReadAnswer,
  type Readiness,
  type ReadPolicy,
  type ReadPolicyOptions,
  type ReadRequest,
  readPolicy,
} from './read/read-policy.ts';
export type { ReadSource } from './read/read-source.ts';
export {
  ReadYourWrites,
  type ReadYourWritesOptions,
  type RequestRead,
  type RequestReads,
} from './read/read-your-writes.ts';
export { openReader, type Reader, type ReaderOptions } from './read/reader.ts';
export {
  type Collected,
  type Trackable,
  type TrackWritesOptions,
  trackWrites,
  type WriteTracker,
} from './read/track-writes.ts';
export type { WaitOptions, WaitTarget } from './replica/position-waiters.ts';
export {
  type Commit,
  type DownloadProgress,
  openReplica,
  type Replica,
  type ReplicaEvents,
  type ReplicaOptions,
} from './replica/replica.ts';
export type { ReplicaLag, ReplicaState, ReplicaStatus } from './replica/replica-status.ts';
export {
  decodeToken,
  encodeToken,
  laterToken,
  type Position,
  type TokenKey,
  type TokenKeys,
  tokenLsn,
} from './token.ts';
