import { once } from 'node:events';
import { createServer, type IncomingHttpHeaders, request, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type FauxqsServer, startFauxqs } from 'fauxqs';

export interface S3Request {
  readonly method: string;
  /** Without the bucket. */
  readonly key: string;
  readonly query: URLSearchParams;
  readonly headers: IncomingHttpHeaders;
  readonly bytes: number;
}

/** What goes wrong with one request. */
export type Fault =
  /** An error of the server's own. */
  | { readonly kind: 'error'; readonly status: number; readonly code: string }
  | { readonly kind: 'slow'; readonly ms: number }
  /** The connection breaks: before the server has heard of it, or after it has done it. */
  | { readonly kind: 'cut'; readonly when: 'before' | 'after' }
  /** Half of the body comes, and then the connection breaks; or the answer pretends that that was all. */
  | { readonly kind: 'truncated'; readonly says: 'whole' | 'half' }
  /** Some bytes of the body are others. */
  | { readonly kind: 'garbled' }
  /** What was there before the last write. */
  | { readonly kind: 'stale' };

interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  body: Buffer;
}

export const SLOW_DOWN: Fault = { kind: 'error', status: 503, code: 'SlowDown' };
export const INTERNAL_ERROR: Fault = { kind: 'error', status: 500, code: 'InternalError' };
export const EXPIRED: Fault = { kind: 'error', status: 400, code: 'ExpiredToken' };
export const DENIED: Fault = { kind: 'error', status: 403, code: 'AccessDenied' };

/** Variables for whoever talks to it; it believes any credentials. */
export const S3_ENVIRONMENT = {
  AWS_ACCESS_KEY_ID: 'test',
  AWS_SECRET_ACCESS_KEY: 'test-secret',
  AWS_REGION: 'us-east-1',
} as const;

/**
 * An S3 server (fauxqs) behind a proxy that adds what it lacks, conditional writes, and what a network and a
 * busy server add: faults, chosen request by request.
 */
export class S3Server implements AsyncDisposable {
  readonly bucket = 'bucket';
  readonly requests: S3Request[] = [];
  /** Asked for every request. */
  fault: (request: S3Request) => Fault | null | undefined = () => null;
  readonly #server: FauxqsServer;
  readonly #proxy: Server;
  readonly #isConditional: boolean;
  readonly #before = new Map<string, Answer | null>();
  #turn: Promise<unknown> = Promise.resolve();

  private constructor(server: FauxqsServer, isConditional: boolean) {
    this.#server = server;
    this.#isConditional = isConditional;
    this.#proxy = createServer((incoming, response) => {
      const chunks: Buffer[] = [];
      incoming.on('data', (chunk: Buffer) => chunks.push(chunk));
      incoming.on('error', () => undefined);
      incoming.on('end', () => {
        const body = Buffer.concat(chunks);
        const url = new URL(incoming.url!, 'http://s3');
        const seen: S3Request = {
          method: incoming.method!,
          key: decodeURIComponent(url.pathname.split('/').slice(2).join('/')),
          query: url.searchParams,
          headers: incoming.headers,
          bytes: body.length,
        };
        this.requests.push(seen);
        this.#serve(seen, incoming.url!, body, response).catch((error: Error) => response.destroy(error));
      });
    });
  }

  /** `conditional: false`: the bare server, which ignores conditions as some do. */
  static async start({ conditional = true } = {}): Promise<S3Server> {
    const server = await startFauxqs({ port: 0, host: '127.0.0.1', logger: false });
    const s3 = new S3Server(server, conditional);
    server.createBucket(s3.bucket);
    s3.#proxy.listen(0, '127.0.0.1');
    await once(s3.#proxy, 'listening');
    return s3;
  }

  get endpoint(): string {
    return `http://127.0.0.1:${(this.#proxy.address() as AddressInfo).port}`;
  }

  /** How often a method was used since the last call, by method. */
  takeCounts(): Readonly<Record<string, number>> {
    const counts: Record<string, number> = {};
    for (const { method } of this.requests.splice(0)) counts[method] = (counts[method] ?? 0) + 1;
    return counts;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#proxy.closeAllConnections();
    this.#proxy.close();
    await this.#server.stop();
  }

  async #serve(seen: S3Request, path: string, body: Buffer, response: ServerResponse): Promise<void> {
    const fault = this.fault(seen) ?? null;
    if (fault?.kind === 'error') return answerError(response, fault.status, fault.code);
    if (fault?.kind === 'cut' && fault.when === 'before') return void response.destroy();
    if (fault?.kind === 'slow') await new Promise((resolve) => setTimeout(resolve, fault.ms));
    const answer =
      fault?.kind === 'stale' && this.#before.has(seen.key)
        ? (this.#before.get(seen.key) ?? null)
        : await this.#inTurn(seen, () => this.#forward(seen, path, body));
    if (fault?.kind === 'cut') return void response.destroy();
    if (answer === null) return answerError(response, 404, 'NoSuchKey');
    if (answer.status === 412) return answerError(response, 412, 'PreconditionFailed');
    const { 'transfer-encoding': _, connection: __, ...headers } = answer.headers;
    const isBody = seen.method !== 'HEAD' && answer.body.length > 1;
    if (fault?.kind === 'garbled' && isBody) answer.body = garble(answer.body);
    const half = answer.body.subarray(0, answer.body.length >> 1);
    if (fault?.kind === 'truncated' && isBody) {
      const says = fault.says === 'whole' ? answer.body.length : half.length;
      response.writeHead(answer.status, { ...headers, 'content-length': says });
      response.write(half, () => (fault.says === 'whole' ? response.destroy() : response.end()));
      return;
    }
    response.writeHead(answer.status, headers as Record<string, string>);
    response.end(seen.method === 'HEAD' ? undefined : answer.body);
  }

  /** Writes one after the other: what a condition was checked against is what is replaced. */
  #inTurn<T>(seen: S3Request, work: () => Promise<T>): Promise<T> {
    if (seen.method !== 'PUT') return work();
    const turn = this.#turn.then(work, work);
    this.#turn = turn.catch(() => undefined);
    return turn;
  }

  async #forward(seen: S3Request, path: string, body: Buffer): Promise<Answer> {
    if (seen.method === 'PUT' && seen.query.size <= 1) {
      const before = await this.#upstream('GET', path, {}, Buffer.alloc(0));
      const present = before.status === 200 ? before : null;
      const { 'if-none-match': ifNoneMatch, 'if-match': ifMatch } = seen.headers;
      const isRefused =
        (ifNoneMatch === '*' && present !== null) ||
        (ifMatch !== undefined && present?.headers.etag !== ifMatch);
      if (this.#isConditional && isRefused) return { status: 412, headers: {}, body: Buffer.alloc(0) };
      this.#before.set(seen.key, present);
    }
    return await this.#upstream(seen.method, path, seen.headers, body);
  }

  #upstream(method: string, path: string, headers: IncomingHttpHeaders, body: Buffer): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const outgoing = request(
        {
          host: '127.0.0.1',
          port: this.#server.port,
          method,
          path,
          headers: { ...headers, host: '127.0.0.1' },
          agent: false,
        },
        (answer) => {
          const chunks: Buffer[] = [];
          answer.on('data', (chunk: Buffer) => chunks.push(chunk));
          answer.on('error', reject);
          answer.on('end', () =>
            resolve({
              status: answer.statusCode!,
              headers: answer.headers,
              body: Buffer.concat(chunks),
            }),
          );
        },
      );
      outgoing.on('error', reject);
      outgoing.end(body);
    });
  }
}

function garble(body: Buffer): Buffer {
  const garbled = Buffer.from(body);
  const at = garbled.length >> 1;
  garbled[at] = garbled[at]! ^ 0xff;
  return garbled;
}

function answerError(response: ServerResponse, status: number, code: string): void {
  response.writeHead(status, { 'content-type': 'application/xml' });
  response.end(
    `<?xml version="1.0" encoding="UTF-8"?><Error><Code>${code}</Code><Message>${code}</Message></Error>`,
  );
}
