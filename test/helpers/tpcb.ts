import pg from 'pg';

/** pgbench's tables, filled by the server itself: `scale` times 100,000 accounts, 10 tellers, 1 branch. */
export async function createTpcb(url: string, scale: number, accountsPerBranch = 100_000): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    await client.query(`
      create table pgbench_branches (bid int primary key, bbalance int, filler char(88));
      create table pgbench_tellers (tid int primary key, bid int, tbalance int, filler char(84));
      create table pgbench_accounts (aid int primary key, bid int, abalance int, filler char(84));
      create table pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
      insert into pgbench_branches select i, 0, null from generate_series(1, ${scale}) i;
      insert into pgbench_tellers select i, (i - 1) / 10 + 1, 0, null from generate_series(1, ${scale * 10}) i;
      insert into pgbench_accounts select i, (i - 1) / ${accountsPerBranch} + 1, 0, '' from generate_series(1, ${scale * accountsPerBranch}) i;
    `);
  } finally {
    await client.end();
  }
}

export interface TpcbLoad extends AsyncDisposable {
  /** Transactions committed so far. */
  readonly committed: number;
  /** Errors that the application saw, other than its connection having been killed. */
  readonly errors: readonly string[];
  stop(): Promise<void>;
}

/** TPC-B-like transactions (three updates, one insert) on `clients` connections until stop(). Reconnects by itself. */
export function startTpcbLoad(options: {
  readonly url: string;
  readonly scale: number;
  readonly accountsPerBranch?: number;
  readonly clients?: number;
  /** Transactions per second over all clients; default: as fast as they go. */
  readonly rate?: number;
}): TpcbLoad {
  const { url, scale, accountsPerBranch = 100_000, clients = 2, rate } = options;
  let stopping = false;
  let committed = 0;
  const errors: string[] = [];
  const random = (limit: number): number => 1 + Math.floor(Math.random() * limit);
  const started = performance.now();

  async function client(): Promise<void> {
    while (!stopping) {
      const connection = new pg.Client({ connectionString: url });
      connection.on('error', () => undefined);
      try {
        await connection.connect();
        while (!stopping) {
          if (rate !== undefined && committed > ((performance.now() - started) / 1000) * rate) {
            await new Promise((resolve) => setTimeout(resolve, 2));
            continue;
          }
          const [aid, bid, tid, delta] = [
            random(scale * accountsPerBranch),
            random(scale),
            random(scale * 10),
            random(10_001) - 5001,
          ];
          await connection.query(
            `begin;
             update pgbench_accounts set abalance = abalance + ${delta} where aid = ${aid};
             update pgbench_tellers set tbalance = tbalance + ${delta} where tid = ${tid};
             update pgbench_branches set bbalance = bbalance + ${delta} where bid = ${bid};
             insert into pgbench_history (tid, bid, aid, delta, mtime) values (${tid}, ${bid}, ${aid}, ${delta}, current_timestamp);
             commit`,
          );
          committed++;
        }
      } catch (error) {
        const { code, message } = error as { code?: string; message: string };
        // 57P01, 57P02, 57P03: the server or its backend was killed; so was the socket.
        if (code === undefined || !/^(57P0|08|ECONN|EPIPE)/.test(code)) {
          if (!/Connection terminated|ended/.test(message)) errors.push(message);
        }
        await new Promise((resolve) => setTimeout(resolve, 50));
      } finally {
        await connection.end().catch(() => undefined);
      }
    }
  }

  const all = Promise.all(Array.from({ length: clients }, client));
  const stop = async (): Promise<void> => {
    stopping = true;
    await all;
  };
  return {
    get committed() {
      return committed;
    },
    errors,
    stop,
    [Symbol.asyncDispose]: stop,
  };
}
