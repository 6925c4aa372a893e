import { RivuletError } from '../errors.ts';

/** As the SDK throws it, as far as we look at it. */
interface S3Failure {
  readonly name?: string;
  readonly message?: string;
  readonly code?: string;
  readonly $metadata?: { readonly httpStatusCode?: number };
}

const HINTS: Readonly<Record<string, string>> = {
  NoSuchBucket: 'create the bucket, or correct the name in --store s3://bucket/prefix',
  ExpiredToken:
    'renew the AWS_* credentials; a process that reads them from a file takes the new ones by itself',
  InvalidAccessKeyId: 'check AWS_ACCESS_KEY_ID, and that --store-endpoint is the server that knows it',
  SignatureDoesNotMatch: 'check AWS_SECRET_ACCESS_KEY',
  AccessDenied:
    'the credentials need s3:GetObject, and to write also s3:PutObject, s3:DeleteObject and s3:ListBucket',
  CredentialsProviderError: 'set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE',
  RequestTimeTooSkewed: "set this machine's clock",
  PermanentRedirect: "set AWS_REGION to the bucket's region",
  AuthorizationHeaderMalformed: "set AWS_REGION to the bucket's region",
};

const SAYS: Readonly<Record<string, string>> = {
  NoSuchBucket: 'the bucket does not exist',
  ExpiredToken: 'the credentials have expired',
  InvalidAccessKeyId: 'the access key is not known there',
  SignatureDoesNotMatch: 'the secret key is wrong',
  AccessDenied: 'access denied',
  CredentialsProviderError: 'there are no credentials',
  RequestTimeTooSkewed: 'the clocks differ too much',
  PermanentRedirect: 'the bucket is in another region',
  AuthorizationHeaderMalformed: 'the bucket is in another region',
};

/** The same thing under other names. */
const ALIASES: Readonly<Record<string, string>> = {
  ExpiredTokenException: 'ExpiredToken',
  TokenRefreshRequired: 'ExpiredToken',
  RequestExpired: 'ExpiredToken',
  InvalidToken: 'InvalidAccessKeyId',
  InvalidClientTokenId: 'InvalidAccessKeyId',
  Forbidden: 'AccessDenied',
  AllAccessDisabled: 'AccessDenied',
  AccountProblem: 'AccessDenied',
};

export function isNotFound(error: unknown): boolean {
  const { name, $metadata } = error as S3Failure;
  return (
    name === 'NoSuchKey' ||
    name === 'NotFound' ||
    ($metadata?.httpStatusCode === 404 && name !== 'NoSuchBucket')
  );
}

/** A conditional write came too late. */
export function isLost(error: unknown): boolean {
  const { name, $metadata } = error as S3Failure;
  return (
    name === 'PreconditionFailed' ||
    name === 'ConditionalRequestConflict' ||
    $metadata?.httpStatusCode === 412 ||
    $metadata?.httpStatusCode === 409
  );
}

/** The server does not know conditional writes, and says so. */
export function isNotImplemented(error: unknown): boolean {
  const { name, $metadata } = error as S3Failure;
  return name === 'NotImplemented' || $metadata?.httpStatusCode === 501;
}

/** What an S3 server or the way to it says, in our words. `url` is the store's. */
export function explainS3Error(cause: unknown, url: string): unknown {
  if (cause instanceof RivuletError) return cause;
  const failure = cause as S3Failure;
  if (failure.name === 'AbortError') return cause;
  const status = failure.$metadata?.httpStatusCode;
  const raw = failure.name ?? 'Error';
  // An answer to HEAD has no body that could say more.
  const name = ALIASES[raw] ?? (SAYS[raw] === undefined && status === 403 ? 'AccessDenied' : raw);
  const says = SAYS[name];
  if (says !== undefined) {
    return new RivuletError('STORE_REFUSED', `the object store ${url} refuses: ${says}`, {
      cause,
      hint: HINTS[name]!,
      facts: { answer: raw },
    });
  }
  if (status !== undefined && status >= 400 && status < 500 && status !== 408 && status !== 429) {
    return new RivuletError(
      'STORE_REFUSED',
      `the object store ${url} refuses: ${failure.message ?? raw} (${status})`,
      { cause, hint: 'is this the address of an S3 server, and the name of a bucket?', facts: { status } },
    );
  }
  const reason = failure.code ?? (failure.message === 'UnknownError' ? raw : (failure.message ?? raw));
  return new RivuletError('STORE_UNREACHABLE', `the object store ${url} is not there (${reason})`, {
    cause,
    hint: 'it is tried again; is --store-endpoint right, and the network there?',
  });
}
