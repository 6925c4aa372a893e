import { createHash, createHmac } from 'node:crypto';
import http from 'node:http';
import https from 'node:https';
import { SignatureV4 } from '@smithy/signature-v4';
import { readBody } from './read-body.ts';

/** How objects of one bucket are asked for. */
export interface SignedAccess {
  readonly protocol: string;
  readonly hostname: string;
  readonly port: number | undefined;
  /** In front of a store's keys, escaped as it travels. */
  readonly path: string;
  readonly region: string;
  readonly credentials: {
    readonly accessKeyId: string;
    readonly secretAccessKey: string;
    readonly sessionToken?: string;
  };
}

export interface SignedGetsOptions {
  readonly maxConnections: number;
  /** Nothing moves on a connection for this long: it is dead. */
  readonly idleTimeoutMs: number;
}

/**
 * GETs of S3 objects and nothing else: no retries, no redirects, no fresh credentials, no other answer than a whole
 * object. An eighth of the processor's time that the SDK takes for one, and no SDK to load.
 */
export class SignedGets {
  readonly #access: SignedAccess;
  readonly #signer: SignatureV4;
  readonly #agent: http.Agent;
  readonly #idleTimeoutMs: number;

  constructor(access: SignedAccess, { maxConnections, idleTimeoutMs }: SignedGetsOptions) {
    this.#access = access;
    this.#idleTimeoutMs = idleTimeoutMs;
    const { Agent } = access.protocol === 'https:' ? https : http;
    this.#agent = new Agent({ keepAlive: true, maxSockets: maxConnections });
    const { region, credentials } = access;
    this.#signer = new SignatureV4({
      service: 's3',
      region,
      credentials,
      sha256: Sha256,
      // S3 alone signs paths as they are.
      // https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
      uriEscapePath: false,
      applyChecksum: false,
    });
  }

  /** The object. Throws UnexpectedAnswer, and what a broken connection throws. */
  async get(key: string, signal: AbortSignal | undefined): Promise<Buffer> {
    const { protocol, hostname, port } = this.#access;
    const path = this.#access.path + key;
    const { headers } = await this.#signer.sign({
      method: 'GET',
      protocol,
      hostname,
      ...(port === undefined ? {} : { port }),
      path,
      query: {},
      headers: {
        host: port === undefined ? hostname : `${hostname}:${port}`,
        'x-amz-content-sha256': 'UNSIGNED-PAYLOAD',
      },
    });
    return await new Promise((resolve, reject) => {
      const { get } = protocol === 'https:' ? https : http;
      // A URL has brackets around an IPv6 address, a socket none.
      const host = hostname.replace(/^\[(.*)\]$/, '$1');
      const options = { protocol, host, port, path, headers, agent: this.#agent, signal };
      const request = get({ ...options, timeout: this.#idleTimeoutMs }, (response) => {
        const { statusCode } = response;
        if (statusCode === 200) {
          readBody(response, Number(response.headers['content-length'])).then(resolve, reject);
        } else {
          response.resume();
          reject(new UnexpectedAnswer(statusCode ?? 0));
        }
      });
      request.on('timeout', () => request.destroy(new Error(`nothing came for ${this.#idleTimeoutMs} ms`)));
      request.on('error', reject);
    });
  }

  close(): void {
    this.#agent.destroy();
  }
}

/** Something else than the object. */
export class UnexpectedAnswer extends Error {
  readonly status: number;

  constructor(status: number) {
    super(`the answer is ${status}`);
    this.status = status;
  }
}

/** What the signer wants it to look like. */
class Sha256 {
  readonly #hash: ReturnType<typeof createHash> | ReturnType<typeof createHmac>;

  constructor(secret?: string | ArrayBuffer | ArrayBufferView) {
    this.#hash =
      secret === undefined ? createHash('sha256') : createHmac('sha256', secret as string | Uint8Array);
  }

  update(data: string | Uint8Array): void {
    this.#hash.update(data);
  }

  async digest(): Promise<Uint8Array> {
    return this.#hash.digest();
  }
}
