import type { Metric } from '../metrics.ts';

/** Bounds of the histogram of how long requests were held, ms. */
const BUCKETS_MS = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000];

/** What the proxy has counted since its start. */
export class ProxyMetrics {
  requests = 0;
  ignored = 0;
  upgrades = 0;
  tokens = 0;
  tokenFailures = 0;
  stale = 0;
  failed = 0;
  readonly #buckets = BUCKETS_MS.map(() => 0);
  #heldCount = 0;
  #heldMs = 0;

  held(ms: number): void {
    this.#heldCount++;
    this.#heldMs += ms;
    for (const [index, bound] of BUCKETS_MS.entries()) if (ms <= bound) this.#buckets[index]!++;
  }

  all(waiting: number): readonly Metric[] {
    return [
      {
        name: 'rivulet_proxy_requests_total',
        help: 'Requests passed on',
        values: [
          { labels: { kind: 'looked at' }, value: this.requests },
          { labels: { kind: 'left alone' }, value: this.ignored },
          { labels: { kind: 'upgrade' }, value: this.upgrades },
        ],
      },
      { name: 'rivulet_proxy_waiting', help: 'Requests that are held now', values: waiting },
      { name: 'rivulet_proxy_held_total', help: 'Requests that were held', values: this.#heldCount },
      { name: 'rivulet_proxy_held_ms_total', help: 'How long they were held together', values: this.#heldMs },
      {
        name: 'rivulet_proxy_held_within_total',
        help: 'Requests that were held no longer than le, ms',
        values: BUCKETS_MS.map((bound, index) => ({
          labels: { le: String(bound) },
          value: this.#buckets[index]!,
        })),
      },
      {
        name: 'rivulet_proxy_timeouts_total',
        help: 'Requests whose token was not reached in time, by what became of them',
        values: [
          { labels: { outcome: 'failed' }, value: this.failed },
          { labels: { outcome: 'stale' }, value: this.stale },
        ],
      },
      { name: 'rivulet_proxy_tokens_total', help: 'Tokens taken from Postgres', values: this.tokens },
      {
        name: 'rivulet_proxy_token_failures_total',
        help: 'Writes after which no token could be taken',
        values: this.tokenFailures,
      },
    ];
  }
}
