import { randomBytes } from 'node:crypto';
import type { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import type { S3Client } from '@aws-sdk/client-s3';
import type { ReaderLocation } from './object-reader.ts';
import {
  checkKey,
  type ListedObject,
  type ObjectStore,
  type StoreCallOptions,
  type StoredVersion,
} from './object-store.ts';
import type { StoreLocation } from './open-store.ts';
import { readBody } from './read-body.ts';
import { explainS3Error, isLost, isNotFound, isNotImplemented } from './s3-error.ts';
import type { SignedAccess } from './signed-gets.ts';
import { UnconditionalSwap } from './unconditional-swap.ts';

/** Larger objects go up in parts: a part that fails is sent again, not all of it. */
const MULTIPART_BYTES = 16 * 1024 * 1024;
/** S3 wants at least 5 MiB. */
const PART_BYTES = 8 * 1024 * 1024;
const PARTS_AT_ONCE = 4;

/** The SDK's own: doubling pauses with jitter, for what can pass (500, 503 SlowDown, broken connections). */
const DEFAULT_ATTEMPTS = 6;
/** An answer whose body breaks off is not the SDK's to ask for again. */
const BODY_ATTEMPTS = 5;
const FIRST_BODY_RETRY_MS = 100;

const CONNECT_TIMEOUT_MS = 5_000;
/** Nothing moves on the connection for this long: it is dead. */
export const IDLE_TIMEOUT_MS = 20_000;
const REQUEST_TIMEOUT_MS = 120_000;
/** More than the chunks that are on their way at once. */
export const MAX_CONNECTIONS = 32;

const DELETE_AT_ONCE = 1000;

/** Of conditional writes, where the answers do not tell whether conditions are heeded. */
const MAX_PROBES = 3;

/** https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-auth-using-authorization-header.html */
const SIGNED = /^AWS4-HMAC-SHA256 Credential=[^/]+\/\d{8}\/([^/]+)\/s3\/aws4_request,/;

type Sdk = typeof import('@aws-sdk/client-s3');

/** As the SDK sends it, as far as we look at it. */
interface HttpRequest {
  readonly method: string;
  readonly protocol: string;
  readonly hostname: string;
  readonly port?: number;
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
}

export interface S3StoreOptions {
  readonly url: string;
  readonly bucket: string;
  /** In front of every key; without slashes at its ends, '' for none. */
  readonly prefix: string;
  /** Of a server other than AWS. */
  readonly endpoint?: string | undefined;
  readonly attempts?: number | undefined;
  /** See UnconditionalSwap. */
  readonly leaseMs?: number | undefined;
}

/** Any S3-compatible server. Credentials and region come from where AWS tools look for them (AWS_* variables first). */
export class S3Store implements ObjectStore {
  readonly url: string;
  readonly location: StoreLocation;
  readonly #sdk: Sdk;
  readonly #client: S3Client;
  readonly #bucket: string;
  readonly #prefix: string;
  readonly #leaseMs: number | undefined;
  #unconditional: UnconditionalSwap | null = null;
  /** A GET that was answered, as it travelled. */
  #sample: { readonly request: HttpRequest; readonly key: string } | null = null;

  private constructor(sdk: Sdk, options: S3StoreOptions) {
    const { AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION, AWS_DEFAULT_REGION } = process.env;
    const endpoint = options.endpoint ?? AWS_ENDPOINT_URL_S3 ?? AWS_ENDPOINT_URL;
    const region = AWS_REGION ?? AWS_DEFAULT_REGION;
    this.url = options.url;
    this.location = { url: options.url, endpoint: options.endpoint };
    this.#sdk = sdk;
    this.#bucket = options.bucket;
    this.#prefix = options.prefix === '' ? '' : `${options.prefix}/`;
    const agent = { keepAlive: true, maxSockets: MAX_CONNECTIONS };
    this.#leaseMs = options.leaseMs;
    this.#client = new sdk.S3Client({
      maxAttempts: options.attempts ?? DEFAULT_ATTEMPTS,
      retryMode: 'standard',
      // Whatever is read carries a hash of ours, and is checked against it.
      responseChecksumValidation: 'WHEN_REQUIRED',
      followRegionRedirects: true,
      // Other servers have no names for their buckets, and any region will do.
      ...(endpoint === undefined ? {} : { endpoint, forcePathStyle: true }),
      ...(region !== undefined ? { region } : endpoint === undefined ? {} : { region: 'us-east-1' }),
      requestHandler: {
        connectionTimeout: CONNECT_TIMEOUT_MS,
        socketTimeout: IDLE_TIMEOUT_MS,
        requestTimeout: REQUEST_TIMEOUT_MS,
        throwOnRequestTimeout: true,
        httpAgent: agent,
        httpsAgent: agent,
      },
    });
    this.#client.middlewareStack.add(
      (next) => async (args) => {
        const result = await next(args);
        const { Key } = args.input as { readonly Key?: string };
        const request = args.request as HttpRequest;
        if (request.method === 'GET' && Key !== undefined) this.#sample = { request, key: Key };
        return result;
      },
      // Around the deserializer: it throws where the answer is an error.
      { step: 'deserialize', priority: 'high', name: 'sampleOfGets' },
    );
  }

  /** Loads the SDK, which takes a moment, only when it is used. */
  static async open(options: S3StoreOptions): Promise<S3Store> {
    return new S3Store(await import('@aws-sdk/client-s3'), options);
  }

  get hasAtomicSwap(): boolean {
    return this.#unconditional === null;
  }

  /** Tries whether conditions are heeded, with an object of its own: some servers ignore them without a word. */
  async prepareWriting(options: StoreCallOptions = {}): Promise<void> {
    let isHeeded: boolean | null = null;
    for (let probe = 1; isHeeded === null && probe <= MAX_PROBES; probe++)
      isHeeded = await this.#areConditionsHeeded(options);
    this.#unconditional = isHeeded === true ? null : new UnconditionalSwap(this, this.#leaseMs);
  }

  /** Null where a write was refused whose condition held, as it may be once: that says nothing of the next. */
  async #areConditionsHeeded(options: StoreCallOptions): Promise<boolean | null> {
    const key = `probe-${randomBytes(8).toString('hex')}`;
    try {
      const first = await this.#conditionalSwap(key, randomBytes(16), null, options);
      if (first === null) return null;
      const overExisting = await this.#conditionalPut(key, randomBytes(16), null, options);
      const overOther = await this.#conditionalPut(key, randomBytes(16), '"00"', options);
      if (overExisting !== null || overOther !== null) return false;
      const overItself = await this.#conditionalSwap(key, randomBytes(16), first, options);
      return overItself === null ? null : true;
    } catch (cause) {
      if (!isNotImplemented(cause)) throw explainS3Error(cause, this.url);
      return false;
    } finally {
      await this.delete([key]).catch(() => undefined);
    }
  }

  async put(key: string, bytes: Uint8Array, options: StoreCallOptions = {}): Promise<void> {
    await this.#explained(async () => {
      if (bytes.length > MULTIPART_BYTES) await this.#putInParts(key, bytes, options);
      else
        await this.#client.send(
          new this.#sdk.PutObjectCommand({ ...this.#object(key), Body: bytes }),
          sendOptions(options),
        );
    });
  }

  async get(key: string, options: StoreCallOptions = {}): Promise<Buffer | null> {
    return (await this.read(key, options))?.bytes ?? null;
  }

  async head(key: string, options: StoreCallOptions = {}): Promise<{ readonly bytes: number } | null> {
    return await this.#orNull(async () => {
      const answer = await this.#client.send(
        new this.#sdk.HeadObjectCommand(this.#object(key)),
        sendOptions(options),
      );
      return { bytes: answer.ContentLength ?? 0 };
    });
  }

  async read(key: string, options: StoreCallOptions = {}): Promise<StoredVersion | null> {
    return await this.#orNull(async () => {
      for (let attempt = 1; ; attempt++) {
        const answer = await this.#client.send(
          new this.#sdk.GetObjectCommand(this.#object(key)),
          sendOptions(options),
        );
        try {
          const bytes = await readBody(answer.Body as Readable, answer.ContentLength ?? Number.NaN);
          return { bytes, version: answer.ETag ?? '' };
        } catch (error) {
          if (attempt === BODY_ATTEMPTS || options.signal?.aborted === true) throw error;
          await delay(FIRST_BODY_RETRY_MS * 2 ** attempt * Math.random(), undefined, options);
        }
      }
    });
  }

  async reading(): Promise<ReaderLocation> {
    return { store: this.location, access: await this.#access() };
  }

  async swap(
    key: string,
    bytes: Uint8Array,
    expected: string | null,
    options: StoreCallOptions = {},
  ): Promise<string | null> {
    return await this.#explained(async () => {
      if (this.#unconditional !== null) return await this.#unconditional.swap(key, bytes, expected, options);
      return await this.#conditionalSwap(key, bytes, expected, options);
    });
  }

  async delete(keys: readonly string[], options: StoreCallOptions = {}): Promise<void> {
    await this.#explained(async () => {
      for (let from = 0; from < keys.length; from += DELETE_AT_ONCE) {
        const Objects = keys.slice(from, from + DELETE_AT_ONCE).map((key) => ({ Key: this.#key(key) }));
        const { Errors = [] } = await this.#client.send(
          new this.#sdk.DeleteObjectsCommand({ Bucket: this.#bucket, Delete: { Objects, Quiet: true } }),
          sendOptions(options),
        );
        const failure = Errors.find(({ Code }) => Code !== 'NoSuchKey');
        if (failure !== undefined)
          throw Object.assign(new Error(failure.Message ?? 'a deletion failed'), {
            name: failure.Code ?? 'InternalError',
          });
      }
    });
  }

  async *list(prefix: string, options: StoreCallOptions = {}): AsyncIterable<ListedObject> {
    for (let token: string | undefined; ; ) {
      const page = await this.#explained(() =>
        this.#client.send(
          new this.#sdk.ListObjectsV2Command({
            Bucket: this.#bucket,
            Prefix: this.#prefix + prefix,
            ContinuationToken: token,
          }),
          sendOptions(options),
        ),
      );
      for (const { Key, Size, LastModified } of page.Contents ?? []) {
        yield {
          key: Key!.slice(this.#prefix.length),
          bytes: Size ?? 0,
          modifiedAtMs: LastModified?.getTime() ?? 0,
        };
      }
      token = page.NextContinuationToken;
      if (page.IsTruncated !== true || token === undefined) return;
    }
  }

  async close(): Promise<void> {
    await this.#unconditional?.release().catch(() => undefined);
    this.#client.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /**
   * Null where nothing was read yet, or it is not read in the usual way (S3 Express, several regions), or there are no
   * credentials just now: the SDK, which is asked then, says why.
   */
  async #access(): Promise<SignedAccess | null> {
    if (this.#sample === null) return null;
    const { request, key } = this.#sample;
    const { protocol, hostname, port, path, headers } = request;
    const [, region] = SIGNED.exec(headers.authorization ?? '') ?? [];
    // No key has characters that are escaped; the prefix may.
    const ownKey = key.slice(this.#prefix.length);
    if (region === undefined || !path.endsWith(`/${ownKey}`)) return null;
    const credentials = await this.#client.config.credentials().catch(() => null);
    if (credentials === null) return null;
    const { accessKeyId, secretAccessKey, sessionToken } = credentials;
    return {
      protocol,
      hostname,
      port,
      path: path.slice(0, -ownKey.length),
      region,
      credentials: { accessKeyId, secretAccessKey, ...(sessionToken === undefined ? {} : { sessionToken }) },
    };
  }

  #key(key: string): string {
    return this.#prefix + checkKey(key);
  }

  #object(key: string): { readonly Bucket: string; readonly Key: string } {
    return { Bucket: this.#bucket, Key: this.#key(key) };
  }

  /** The new version, or null if it is not these bytes that are there. */
  async #conditionalSwap(
    key: string,
    bytes: Uint8Array,
    expected: string | null,
    options: StoreCallOptions,
  ): Promise<string | null> {
    const version = await this.#conditionalPut(key, bytes, expected, options);
    if (version !== null) return version;
    // Perhaps it was ours that is there: the answer to it was lost, and the SDK asked again.
    const present = await this.read(key, options);
    return present?.bytes.equals(bytes) === true ? present.version : null;
  }

  /** The new version, or null if the condition did not hold. */
  async #conditionalPut(
    key: string,
    bytes: Uint8Array,
    expected: string | null,
    options: StoreCallOptions,
  ): Promise<string | null> {
    try {
      const { ETag } = await this.#client.send(
        new this.#sdk.PutObjectCommand({
          ...this.#object(key),
          Body: bytes,
          ...(expected === null ? { IfNoneMatch: '*' } : { IfMatch: expected }),
        }),
        sendOptions(options),
      );
      return ETag ?? '';
    } catch (error) {
      // If-Match on what is not there is a 404.
      if (isLost(error) || (expected !== null && isNotFound(error))) return null;
      throw error;
    }
  }

  async #putInParts(key: string, bytes: Uint8Array, options: StoreCallOptions): Promise<void> {
    const object = this.#object(key);
    const { UploadId } = await this.#client.send(
      new this.#sdk.CreateMultipartUploadCommand(object),
      sendOptions(options),
    );
    const count = Math.ceil(bytes.length / PART_BYTES);
    const parts: { ETag: string; PartNumber: number }[] = [];
    let next = 0;
    const sendParts = async (): Promise<void> => {
      while (next < count) {
        const index = next++;
        const Body = bytes.subarray(index * PART_BYTES, (index + 1) * PART_BYTES);
        const { ETag } = await this.#client.send(
          new this.#sdk.UploadPartCommand({ ...object, UploadId, PartNumber: index + 1, Body }),
          sendOptions(options),
        );
        parts[index] = { ETag: ETag ?? '', PartNumber: index + 1 };
      }
    };
    const workers = Array.from({ length: Math.min(PARTS_AT_ONCE, count) }, sendParts);
    try {
      await Promise.all(workers);
      await this.#client.send(
        new this.#sdk.CompleteMultipartUploadCommand({
          ...object,
          UploadId,
          MultipartUpload: { Parts: parts },
        }),
        sendOptions(options),
      );
    } catch (error) {
      // Parts of an upload that is not ended are paid for, for ever, and shown nowhere.
      next = count;
      await Promise.allSettled(workers);
      await this.#client
        .send(new this.#sdk.AbortMultipartUploadCommand({ ...object, UploadId }))
        .catch(() => undefined);
      throw error;
    }
  }

  async #explained<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (cause) {
      throw explainS3Error(cause, this.url);
    }
  }

  async #orNull<T>(work: () => Promise<T>): Promise<T | null> {
    try {
      return await work();
    } catch (cause) {
      if (isNotFound(cause)) return null;
      throw explainS3Error(cause, this.url);
    }
  }
}

function sendOptions({ signal }: StoreCallOptions): { abortSignal?: AbortSignal } {
  return signal === undefined ? {} : { abortSignal: signal };
}
