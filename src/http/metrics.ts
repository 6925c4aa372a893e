import type { RequestHandler } from 'express';
import { Gauge, Registry } from 'prom-client';

/** One gauge: its value, or one for each set of labels. Null values are left out. */
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
  const rows = Array.isArray(values)
    ? (values as Exclude<Metric['values'], number | null>)
    : [{ labels: {}, value: values as number | null }];
  const labelNames = [...new Set(rows.flatMap(({ labels }) => Object.keys(labels)))];
  const gauge = new Gauge({ name, help, labelNames, registers: [registry] });
  for (const { labels, value } of rows) if (value !== null) gauge.set(labels, value);
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
