import { type IncomingMessage, type ServerResponse, STATUS_CODES } from 'node:http';
import { RivuletError } from '../../errors.ts';
import { isAuthorized } from '../authorization.ts';
import { foreignRequest } from '../foreign-request.ts';
import { metricsContentType, metricsText } from '../metrics.ts';
import type { AppConnection } from './app-connection.ts';
import type { LocalReplica } from './local-replica.ts';
import type { ProxyMetrics } from './proxy-metrics.ts';
import type { ReadGate } from './read-gate.ts';

export const HEALTH_PATH = '/rivulet/healthz';
export const METRICS_PATH = '/rivulet/metrics';

const APP_PROBE_MS = 1_000;

export interface OwnAnswersOptions {
  readonly app: AppConnection;
  readonly replica: LocalReplica;
  readonly gate: ReadGate;
  readonly metrics: ProxyMetrics;
  readonly maxLagMs: number;
  readonly metricsToken: string | undefined;
  readonly isStopping: () => boolean;
}

/** What the proxy answers itself, in place of the app. */
export class OwnAnswers {
  readonly #options: OwnAnswersOptions;

  constructor(options: OwnAnswersOptions) {
    this.#options = options;
  }

  /** For HEALTH_PATH and METRICS_PATH. Rejects with UNAUTHORIZED, FOREIGN_REQUEST. */
  async answer(path: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { metricsToken, metrics, gate } = this.#options;
    if (path === METRICS_PATH) {
      const isAllowed =
        metricsToken === undefined
          ? isFromHere(request)
          : isAuthorized(request.headers.authorization, metricsToken);
      const refusal = metricsToken === undefined ? foreignRequest(request) : null;
      if (refusal !== null) throw refusal;
      if (!isAllowed)
        throw new RivuletError('UNAUTHORIZED', 'a bearer token is needed, and it must be the right one');
      const text = await metricsText(metrics.all(gate.held));
      response.writeHead(200, { 'content-type': metricsContentType }).end(text);
      return;
    }
    const { status, body } = await this.#health();
    answerJson(response, status, body, ['Cache-Control', 'no-store']);
  }

  async #health(): Promise<{ status: number; body: object }> {
    const { replica, app, gate, maxLagMs } = this.#options;
    const [health, appProblem] = await Promise.all([replica.health(), app.probe(APP_PROBE_MS)]);
    const reasons = [...health.reasons];
    const { lagMs } = health;
    if (lagMs !== null && lagMs > maxLagMs)
      reasons.push(`the replica is ${Math.round(lagMs)} ms behind, and ${maxLagMs} ms are allowed`);
    if (appProblem !== null) reasons.push(appProblem);
    if (this.#options.isStopping()) reasons.push('the proxy is stopping');
    const isHealthy = reasons.length === 0;
    return {
      status: isHealthy ? 200 : 503,
      body: { healthy: isHealthy, reasons, lagMs, waiting: gate.held },
    };
  }
}

export function answerJson(
  response: ServerResponse,
  status: number,
  body: object,
  headers: readonly string[],
): void {
  const text = JSON.stringify(body);
  // The reason is named: an answer of the app that could not be written has left its own behind.
  response.writeHead(status, STATUS_CODES[status] ?? '', [
    ...headers,
    'Content-Type',
    'application/json; charset=utf-8',
    'Content-Length',
    String(Buffer.byteLength(text)),
  ]);
  response.end(text);
}

function isFromHere(request: IncomingMessage): boolean {
  const address = request.socket.remoteAddress ?? '';
  return request.headers['x-forwarded-for'] === undefined && /^(::ffff:)?127\.|^::1$/.test(address);
}
