import type { ErrorRequestHandler, RequestHandler } from 'express';
import { ConfigError, RivuletError } from '../errors.ts';
import type { Log } from '../log.ts';

/** Answers every error with its status and {code, message, hint}; what we did not expect shows nothing of itself. */
export function answerErrors(log: Log): ErrorRequestHandler {
  return (error: unknown, request, response, _next) => {
    const known = toRivuletError(error);
    if (known === null) log.error({ err: error, path: request.path }, 'a request failed');
    if (response.headersSent) {
      response.destroy();
      return;
    }
    // An endless response that was about to begin may have set its own.
    response.removeHeader('content-type');
    if (known === null)
      response
        .status(500)
        .json({ code: 'PROTOCOL', message: 'internal error', hint: 'the log of the process says more' });
    else
      response.status(known.httpStatus).json({ code: known.code, message: known.message, hint: known.hint });
  };
}

export const answerNotFound: RequestHandler = (request, response) => {
  response.status(404).json({ code: 'CONFIG', message: `there is no ${request.method} ${request.path}` });
};

function toRivuletError(error: unknown): RivuletError | null {
  if (error instanceof RivuletError) return error;
  // What express's own parsers refuse: a body that is too large or not JSON, a path that is not UTF-8.
  const { status, message } = error as { status?: unknown; message?: unknown };
  if (typeof status === 'number' && status >= 400 && status < 500)
    return new ConfigError(`the request cannot be read: ${String(message)}`);
  return null;
}
