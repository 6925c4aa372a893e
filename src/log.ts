import pino from 'pino';

/** What every stage logs to: made once, by the command line or by the program that uses the library. */
export type Log = pino.Logger;

/** The library's default: a program that wants to hear of its replicas hands a logger in. */
export function silentLog(): Log {
  return pino({ enabled: false });
}
