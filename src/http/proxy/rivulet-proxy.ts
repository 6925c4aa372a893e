import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Duplex } from 'node:stream';
import { RivuletError } from '../../errors.ts';
import type { Log } from '../../log.ts';
import { explainListenError, type ListenAddress } from '../listen.ts';
import { AnswerTokens, type Exchanged, STALE } from './answer-tokens.ts';
import { AppConnection, MAX_HEADER_BYTES } from './app-connection.ts';
import { exchange, pathOf } from './exchange.ts';
import type { LocalReplica } from './local-replica.ts';
import { answerJson, HEALTH_PATH, METRICS_PATH, OwnAnswers } from './own-answers.ts';
import { ProxyMetrics } from './proxy-metrics.ts';
import { ReadGate } from './read-gate.ts';
import type { TokenSource } from './token-source.ts';
import type { TokenTransport, WantedPosition } from './token-transport.ts';
import { mayUpgrade, upgrade } from './upgrade.ts';

export const DEFAULT_HOLD_TIMEOUT_MS = 2_000;
export const DEFAULT_MAX_LAG_MS = 10_000;
export const DEFAULT_WRITE_METHODS: readonly string[] = ['POST', 'PUT', 'PATCH', 'DELETE'];
export const DEFAULT_READ_METHODS: readonly string[] = ['GET', 'HEAD'];

/** Longer than the idle time of the usual load balancers (60 s): they close, not we, so no request is lost. */
const KEEP_ALIVE_MS = 75_000;

/** Requests under way may end by themselves for so long after SIGTERM; Docker kills after ten seconds. */
const DRAIN_MS = 9_000;

const RETRY_AFTER_SECONDS = 1;

/** One and the same trouble is logged so often at most. */
const WARN_INTERVAL_MS = 10_000;

export type TimeoutPolicy = 'fail' | 'stale';

export interface ProxyOptions {
  readonly listen: ListenAddress;
  /** The app's URL, without a path. */
  readonly target: string;
  readonly replica: LocalReplica;
  /** Null: tokens come from the app's own responses only. */
  readonly source: TokenSource | null;
  readonly tokens: TokenTransport;
  readonly timeoutMs?: number | undefined;
  /** What becomes of a read whose token is not reached in time: 503, or on to the app, saying so. */
  readonly onTimeout?: TimeoutPolicy | undefined;
  readonly writeMethods?: readonly string[] | undefined;
  readonly readMethods?: readonly string[] | undefined;
  /** Paths that are passed on without a look: `*` stands for anything. */
  readonly ignorePaths?: readonly string[] | undefined;
  /** Further behind, the node is not healthy. */
  readonly maxLagMs?: number | undefined;
  /** Bearer token for /rivulet/metrics; without one only loopback gets an answer. */
  readonly metricsToken?: string | undefined;
  readonly log: Log;
}

/**
 * In front of an app in any language. A response to a request that writes carries a token for what was written; a
 * request that reads is held until the replica beside the app has what its token says. What it shows of newer
 * data becomes part of the token, so that a client never goes back in time when it comes to another node.
 */
export class RivuletProxy implements AsyncDisposable {
  readonly url: string;
  readonly #server: Server;
  readonly #app: AppConnection;
  readonly #gate: ReadGate;
  readonly #metrics = new ProxyMetrics();
  readonly #answers: AnswerTokens;
  readonly #own: OwnAnswers;
  readonly #options: ProxyOptions;
  readonly #policy: TimeoutPolicy;
  readonly #writeMethods: ReadonlySet<string>;
  readonly #readMethods: ReadonlySet<string>;
  readonly #ignored: RegExp | null;
  readonly #upgraded = new Set<Duplex>();
  readonly #warnedAtMs = new Map<string, number>();
  #active = 0;
  #onIdle: (() => void) | null = null;
  #closing: Promise<void> | null = null;

  private constructor(server: Server, app: AppConnection, options: ProxyOptions) {
    const { host } = options.listen;
    const { port } = server.address() as AddressInfo;
    this.url = `http://${host.includes(':') ? `[${host}]` : host}:${port}`;
    this.#server = server;
    this.#app = app;
    this.#options = options;
    this.#policy = options.onTimeout ?? 'fail';
    this.#writeMethods = new Set(options.writeMethods ?? DEFAULT_WRITE_METHODS);
    this.#readMethods = new Set(options.readMethods ?? DEFAULT_READ_METHODS);
    this.#ignored = patterns(options.ignorePaths ?? []);
    const { replica, source, tokens, metricsToken, maxLagMs = DEFAULT_MAX_LAG_MS } = options;
    this.#gate = new ReadGate({ replica, source, timeoutMs: options.timeoutMs ?? DEFAULT_HOLD_TIMEOUT_MS });
    const metrics = this.#metrics;
    this.#answers = new AnswerTokens({
      tokens,
      replica,
      source,
      metrics,
      warn: (what, message) => this.#warn(what, message),
    });
    const isStopping = (): boolean => this.#closing !== null;
    this.#own = new OwnAnswers({
      app,
      replica,
      gate: this.#gate,
      metrics,
      maxLagMs,
      metricsToken,
      isStopping,
    });
  }

  /** Listens. Throws LISTEN. */
  static async start(options: ProxyOptions): Promise<RivuletProxy> {
    const server = createServer({
      keepAliveTimeout: KEEP_ALIVE_MS,
      // However long an upload takes: the app decides.
      requestTimeout: 0,
      maxHeaderSize: MAX_HEADER_BYTES,
      shouldUpgradeCallback: mayUpgrade,
    });
    const { host, port } = options.listen;
    await new Promise<void>((resolve, reject) => {
      server.once('error', (cause) => reject(explainListenError(cause, options.listen)));
      server.listen(port, host, resolve);
    });
    const proxy = new RivuletProxy(server, new AppConnection(options.target), options);
    const onRequest = (request: IncomingMessage, response: ServerResponse): void =>
      proxy.#handle(request, response);
    // Each of them is the app's to answer: Node would do it by itself.
    for (const event of ['request', 'checkContinue', 'checkExpectation'] as const)
      server.on(event, onRequest);
    server.on('upgrade', (request, socket, head) => proxy.#upgrade(request, socket, head));
    return proxy;
  }

  /** Lets requests under way end, for some seconds at most, then closes everything. May be called twice. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    if (this.#active > 0) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, DRAIN_MS);
        this.#onIdle = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    this.#server.closeAllConnections();
    for (const socket of this.#upgraded) socket.destroy();
    await closed;
    this.#app[Symbol.dispose]();
  }

  #handle(request: IncomingMessage, response: ServerResponse): void {
    this.#active++;
    response.on('close', () => {
      this.#active--;
      if (this.#closing === null) return;
      this.#server.closeIdleConnections();
      if (this.#active === 0) this.#onIdle?.();
    });
    if (this.#closing !== null) response.shouldKeepAlive = false;
    const path = pathOf(request).split('?', 1)[0]!;
    if (path === HEALTH_PATH || path === METRICS_PATH) {
      this.#own.answer(path, request, response).catch((error: unknown) => this.#fail(error, response));
      return;
    }
    if (this.#ignored?.test(path) === true) {
      this.#metrics.ignored++;
      this.#exchange(request, response, null);
      return;
    }
    const { method = 'GET' } = request;
    const about: Exchanged = {
      given: null,
      isTranslated: false,
      stale: null,
      isRead: this.#readMethods.has(method),
      isWrite: this.#writeMethods.has(method),
      isSecure: request.headers['x-forwarded-proto'] === 'https',
    };
    try {
      about.given = this.#options.tokens.ofRequest(request.headers);
    } catch (error) {
      this.#fail(error, response);
      return;
    }
    this.#metrics.requests++;
    if (about.given === null || !about.isRead || this.#gate.isOpen(about.given))
      this.#exchange(request, response, about);
    else void this.#hold(about.given, about, request, response);
  }

  async #hold(
    wanted: WantedPosition,
    about: Exchanged,
    request: IncomingMessage,
    response: ServerResponse,
  ): Promise<void> {
    const gone = new AbortController();
    const onGone = (): void => gone.abort();
    response.once('close', onGone);
    const startedMs = performance.now();
    try {
      const reached = await this.#gate.hold(wanted, gone.signal);
      about.given = reached;
      about.isTranslated = reached !== wanted;
    } catch (error) {
      about.stale = error as RivuletError;
    } finally {
      response.off('close', onGone);
      this.#metrics.held(performance.now() - startedMs);
    }
    if (response.destroyed) return;
    if (about.stale === null || this.#policy === 'stale') {
      if (about.stale !== null) this.#metrics.stale++;
      this.#exchange(request, response, about);
      return;
    }
    this.#metrics.failed++;
    const { tokens, source } = this.#options;
    const { code } = about.stale;
    // Said once: what nobody can reach any more, or tell, must not keep its holder out for ever.
    const isHopeless = code === 'EPOCH_MISMATCH' || (code === 'TOKEN_UNAVAILABLE' && source === null);
    const removal = isHopeless ? tokens.removal() : [];
    this.#fail(about.stale, response, { status: 503, headers: removal });
  }

  #exchange(request: IncomingMessage, response: ServerResponse, about: Exchanged | null): void {
    exchange(request, response, {
      app: this.#app,
      headers: about === null || about.stale === null ? [] : STALE,
      decorate: about === null ? null : (incoming) => this.#answers.decorate(about, incoming),
      onFailure: (error) => this.#fail(error, response),
    });
  }

  #upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    this.#upgraded.add(socket);
    this.#metrics.upgrades++;
    const onFailure = (error: RivuletError, response: ServerResponse): void => this.#fail(error, response);
    void upgrade(request, socket, head, { app: this.#app, onFailure }).then(() =>
      this.#upgraded.delete(socket),
    );
  }

  #fail(
    error: unknown,
    response: ServerResponse,
    { status, headers = [] }: { readonly status?: number; readonly headers?: readonly string[] } = {},
  ): void {
    const known = error instanceof RivuletError ? error : null;
    if (known === null) this.#options.log.error({ err: error }, 'a request failed');
    else if (known.httpStatus >= 500) this.#warn(known.code, known.message);
    if (response.headersSent || response.destroyed) {
      response.destroy();
      return;
    }
    const code = status ?? known?.httpStatus ?? 500;
    const body =
      known === null
        ? { code: 'PROTOCOL', message: 'internal error', hint: 'the log of the proxy says more' }
        : { code: known.code, message: known.message, hint: known.hint };
    answerJson(response, code, body, [
      ...headers,
      ...(code === 503 ? ['Retry-After', String(RETRY_AFTER_SECONDS)] : []),
    ]);
  }

  #warn(what: string, message: string): void {
    const nowMs = performance.now();
    if (nowMs - (this.#warnedAtMs.get(what) ?? Number.NEGATIVE_INFINITY) < WARN_INTERVAL_MS) return;
    this.#warnedAtMs.set(what, nowMs);
    this.#options.log.warn(message);
  }
}

/** One expression for all paths that are left alone; null for none. */
function patterns(paths: readonly string[]): RegExp | null {
  if (paths.length === 0) return null;
  const each = paths.map((path) =>
    path
      .split('*')
      .map((part) => part.replace(/[.+?^${}()|[\]\\]/g, '\\$&'))
      .join('.*'),
  );
  return new RegExp(`^(?:${each.join('|')})$`);
}
