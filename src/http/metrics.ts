import type { RequestHandler } from 'express';
import { Counter, Gauge, Registry } from 'prom-client';

/**
 * One gauge, or a counter if its name ends in `_total`: its value, or one for each set of labels. Null values are
 * left out, and with them a metric that has no other.
 */
export interface Metric {
  readonly name: string;
  readonly help: string;
  readonly values:
    | number
    | null
    | readonly { readonly labels: Readonly<Record<string, string>>; readonly value: number | null }[];
}

/** GET /metrics: read from the status on each scrape, so that nothing is counted where data travels. */
export function serveMetrics(read: () => readonly Metric[]): RequestHandler {
  return async (_request, response) => {
    response.setHeader('content-type', metricsContentType);
    response.end(await metricsText(read()));
  };
}

export const metricsContentType: string = Registry.PROMETHEUS_CONTENT_TYPE;

/** The metrics, and those of the process, as Prometheus reads them. */
export async function metricsText(metrics: readonly Metric[]): Promise<string> {
  const registry = new Registry();
  for (const metric of [...metrics, ...processMetrics()]) add(registry, metric);
  return await registry.metrics();
}

function add(registry: Registry, { name, help, values }: Metric): void {
  const all = Array.isArray(values)
    ? (values as Exclude<Metric['values'], number | null>)
    : [{ labels: {}, value: values as number | null }];
  const rows = all.flatMap(({ labels, value }) => (value === null ? [] : [{ labels, value }]));
  // Registered without a value, one without labels would say 0.
  if (rows.length === 0) return;
  const labelNames = [...new Set(rows.flatMap(({ labels }) => Object.keys(labels)))];
  const options = { name, help, labelNames, registers: [registry] };
  if (name.endsWith('_total')) {
    const counter = new Counter(options);
    for (const { labels, value } of rows) counter.inc(labels, value);
  } else {
    const gauge = new Gauge(options);
    for (const { labels, value } of rows) gauge.set(labels, value);
  }
}

function processMetrics(): readonly Metric[] {
  const { user, system } = process.cpuUsage();
  return [
    { name: 'process_resident_memory_bytes', help: 'Resident memory', values: process.memoryUsage.rss() },
    {
      name: 'process_cpu_seconds_total',
      help: 'CPU time used, user and system',
      values: (user + system) / 1e6,
    },
    { name: 'process_uptime_seconds', help: 'Time since the start', values: process.uptime() },
  ];
}
