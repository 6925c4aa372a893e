import type { IncomingMessage } from 'node:http';
import { ERROR_TABLE, type ErrorCode, ProtocolError, RivuletError } from '../errors.ts';

/** Errors are small. */
const MAX_ANSWER_BYTES = 64 * 1024;

/** The replicator's own error, as it was thrown there. */
export async function readError(response: IncomingMessage, base: URL): Promise<RivuletError> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const chunk of response as AsyncIterable<Buffer>) {
      bytes += chunk.length;
      if (bytes > MAX_ANSWER_BYTES) break;
      chunks.push(chunk);
    }
    const { code, message, hint } = JSON.parse(Buffer.concat(chunks).toString()) as {
      code?: unknown;
      message?: unknown;
      hint?: unknown;
    };
    if (typeof code === 'string' && Object.hasOwn(ERROR_TABLE, code) && typeof message === 'string') {
      // It understands us, but not this request: a path too much in the URL, or the port of a replica.
      if (code === 'CONFIG')
        return new RivuletError('CONFIG', `${base.origin} answers: ${message}`, {
          hint: 'is this the URL of a replicator, without a path behind it?',
        });
      return new RivuletError(code as ErrorCode, message, typeof hint === 'string' ? { hint } : {});
    }
  } catch {
    // Not ours: a proxy's page, say.
  }
  return new ProtocolError(`${base.origin} answers ${response.statusCode}`, {
    hint: 'is this the address of a replicator?',
  });
}
