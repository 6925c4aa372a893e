import {
  type ClientRequest,
  Agent as HttpAgent,
  request as httpRequest,
  type IncomingHttpHeaders,
  type IncomingMessage,
  type RequestOptions,
} from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https';
import { REPORT_INTERVAL_HEADER } from '../change/frame.ts';
import { giveBack } from '../change/give-back.ts';
import type { ReplicaDigest } from '../change/table-digest.ts';
import { RivuletError } from '../errors.ts';
import { formatLsn } from '../lsn.ts';
import type {
  FollowerLink,
  FollowerReport,
  FollowRequest,
  LinkStream,
  StreamHandlers,
} from './follower-link.ts';
import { readError } from './read-error.ts';

/** How long an answer's beginning may take. */
const ANSWER_TIMEOUT_MS = 5000;

const LONGEST_REPORT_INTERVAL_MS = 10 * 60_000;

export interface HttpLinkOptions {
  /** http://host:port or https://host:port, with a path before ours or not. */
  readonly url: string;
  readonly token?: string | undefined;
}

/** Follows a replicator over HTTP. Flow control is the socket's: who applies does not read. */
export class HttpLink implements FollowerLink {
  readonly #base: URL;
  readonly #token: string | undefined;
  readonly #isTls: boolean;
  /** Reports go over a connection that stays open; streams and downloads have one of their own each. */
  readonly #agent: HttpAgent;
  #isHastening = false;

  constructor(options: HttpLinkOptions) {
    this.#base = new URL(options.url.endsWith('/') ? options.url : `${options.url}/`);
    this.#token = options.token;
    this.#isTls = this.#base.protocol === 'https:';
    const agentOptions = { keepAlive: true, maxSockets: 2 };
    this.#agent = this.#isTls ? new HttpsAgent(agentOptions) : new HttpAgent(agentOptions);
  }

  async open(request: FollowRequest, handlers: StreamHandlers, signal: AbortSignal): Promise<LinkStream> {
    const { id, name, epoch, position, digests } = request;
    const query = new URLSearchParams({ epoch, lsn: formatLsn(position), follower: id, name });
    if (digests) query.set('digests', '1');
    const { response, close } = await this.get(`v1/stream?${query}`, { signal });
    if (response.statusCode !== 200) throw await readError(response, this.#base);
    let isOver = false;
    const end = (cause?: Error): void => {
      if (isOver) return;
      isOver = true;
      handlers.onEnd(unreachable(this.#base, 'the connection broke', cause));
    };
    // The parser is called before this, and has copied the body out of what the socket gave.
    let newest: Buffer | null = null;
    response.socket.on('data', (chunk: Buffer) => {
      if (chunk.buffer !== newest?.buffer) giveBack(chunk);
      newest = null;
    });
    response.on('data', (bytes: Buffer) => {
      newest = bytes;
      if (!isOver) handlers.onBytes(bytes);
    });
    response.on('end', () => end());
    response.on('close', () => end());
    response.on('error', end);
    return {
      consumed: () => undefined,
      close: () => {
        isOver = true;
        close();
      },
    };
  }

  async report(id: string, report: FollowerReport): Promise<number | null> {
    const { name, position, lagMs, followers } = report;
    const headers = await this.#post(
      `v1/followers/${encodeURIComponent(id)}`,
      JSON.stringify({ name, lsn: formatLsn(position), lagMs, followers }),
    );
    const intervalMs = Number(headers[REPORT_INTERVAL_HEADER]);
    return intervalMs >= 1 && intervalMs <= LONGEST_REPORT_INTERVAL_MS ? intervalMs : null;
  }

  async digest(id: string, digest: ReplicaDigest): Promise<void> {
    await this.#post(`v1/followers/${encodeURIComponent(id)}/digest`, JSON.stringify(digest));
  }

  async hasten(): Promise<void> {
    if (this.#isHastening) return;
    this.#isHastening = true;
    try {
      await this.#post('v1/hasten', '');
    } finally {
      this.#isHastening = false;
    }
  }

  /** For messages: where it connects to, without what a URL may have behind that. */
  get base(): URL {
    return this.#base;
  }

  close(): void {
    this.#agent.destroy();
  }

  /** Begins a GET over a connection of its own; resolves with any answer's head. */
  async get(
    path: string,
    options: {
      readonly signal: AbortSignal;
      readonly headers?: Readonly<Record<string, string>>;
      readonly method?: 'GET' | 'HEAD';
    },
  ): Promise<{ readonly response: IncomingMessage; close(): void }> {
    const request = this.#request(path, {
      method: options.method ?? 'GET',
      agent: false,
      headers: { ...options.headers },
    });
    const close = (): void => {
      request.destroy();
    };
    options.signal.addEventListener('abort', close, { once: true });
    request.once('close', () => options.signal.removeEventListener('abort', close));
    if (options.signal.aborted) close();
    request.end();
    const response = await this.#answer(request);
    response.socket.setNoDelay(true);
    return { response, close };
  }

  async #post(path: string, body: string): Promise<IncomingHttpHeaders> {
    const headers = { 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(body)) };
    const request = this.#request(path, { method: 'POST', agent: this.#agent, headers });
    request.setNoDelay(true);
    request.end(body);
    const response = await this.#answer(request);
    if (response.statusCode !== 204) throw await readError(response, this.#base);
    response.resume();
    return response.headers;
  }

  #request(path: string, options: RequestOptions): ClientRequest {
    const headers = {
      ...(options.headers as Record<string, string>),
      ...(this.#token === undefined ? {} : { authorization: `Bearer ${this.#token}` }),
    };
    return (this.#isTls ? httpsRequest : httpRequest)(new URL(path, this.#base), { ...options, headers });
  }

  #answer(request: ClientRequest): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => request.destroy(new Error(`no answer for ${ANSWER_TIMEOUT_MS} ms`)),
        ANSWER_TIMEOUT_MS,
      );
      request.once('response', (response) => {
        clearTimeout(timer);
        resolve(response);
      });
      // Stays for the request's life: an error after the answer is the response's to report.
      request.on('error', (cause: NodeJS.ErrnoException) => {
        clearTimeout(timer);
        reject(unreachable(this.#base, cause.code ?? cause.message, cause));
      });
      request.once('close', () => {
        clearTimeout(timer);
        reject(unreachable(this.#base, 'the connection was closed'));
      });
    });
  }
}

function unreachable(base: URL, reason: string, cause?: Error): RivuletError {
  return new RivuletError(
    'REPLICATOR_UNREACHABLE',
    `the replicator at ${base.origin} is not there (${reason.startsWith('HPE_') ? 'what answers is not HTTP' : reason})`,
    {
      cause,
      hint: 'is it running, and is this its --listen address? Reads go on meanwhile',
    },
  );
}
