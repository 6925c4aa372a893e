import { ERROR_TABLE, type ErrorCode, ProtocolError, RivuletError } from './errors.ts';

/** An error as it crosses threads; its class would not. */
export interface PlainError {
  readonly code: string;
  readonly message: string;
  readonly hint: string | undefined;
}

export function toPlainError(error: unknown): PlainError {
  if (error instanceof RivuletError) return { code: error.code, message: error.message, hint: error.hint };
  return {
    code: 'PROTOCOL',
    message: error instanceof Error ? error.message : String(error),
    hint: undefined,
  };
}

export function fromPlainError({ code, message, hint }: PlainError): RivuletError {
  const details = hint === undefined ? {} : { hint };
  if (!Object.hasOwn(ERROR_TABLE, code)) return new ProtocolError(message, details);
  return new RivuletError(code as ErrorCode, message, details);
}
