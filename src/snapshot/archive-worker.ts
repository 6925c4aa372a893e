import { setPriority } from 'node:os';
import { parentPort, workerData } from 'node:worker_threads';
import { toPlainError } from '../plain-error.ts';
import { openStore } from '../store/open-store.ts';
import type { ArchiveReply, ArchiveRequest, ArchiveTask } from './archive-messages.ts';
import { type ArchiveFacts, ArchiveSession } from './archive-session.ts';

/** The thread that compresses, hashes and talks to the object store; Archive starts it. Nothing is decided here. */
const task = workerData as ArchiveTask;
const port = parentPort!;
const reply = (message: ArchiveReply): void => port.postMessage(message);

// On Linux this is of the calling thread alone: what followers wait for comes first.
if (process.platform === 'linux') setPriority(0, 10);

const session = new ArchiveSession(await openStore(task.location), task.settings, {
  onProgress: (progress) => reply({ kind: 'progress', progress }),
  onLog: (level, message, facts) => reply({ kind: 'log', level, message, facts }),
});

port.on('message', (request: ArchiveRequest) => {
  if (request.kind === 'close') {
    void session.close().finally(() => port.close());
    return;
  }
  const { id, method, argument } = request;
  const work: Promise<unknown> = method === 'sweep' ? session.sweep() : session[method](argument as never);
  work.then(
    (result) => reply({ kind: 'done', id, result, facts: facts() }),
    (error: unknown) => reply({ kind: 'failed', id, error: toPlainError(error) }),
  );
});

function facts(): ArchiveFacts | null {
  try {
    return session.facts();
  } catch {
    return null;
  }
}
