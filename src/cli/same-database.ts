import { RivuletError } from '../errors.ts';
import { ReplicaPositionReader } from '../read/position-reader.ts';
import { type FileOrigin, readOrigin } from '../replica/replica-file.ts';
import { identify } from '../source/catalog.ts';
import { connect, disconnect } from '../source/connection.ts';

/** Throws unless the file is a replica, and one of the database that the URL names. */
export async function checkSameDatabase(file: string, postgres: string): Promise<void> {
  const made = originOf(file);
  let client: Awaited<ReturnType<typeof connect>>;
  try {
    client = await connect(postgres, { applicationName: 'rivulet replica' });
  } catch (error) {
    // Reads outlive the server; its identity is looked at again before anything is built.
    if (error instanceof RivuletError && error.code === 'POSTGRES_UNREACHABLE') return;
    throw error;
  }
  try {
    const { systemIdentifier, database } = await identify(client);
    if (made.systemIdentifier === systemIdentifier && made.databaseName === database) return;
    throw new RivuletError(
      'FILE_UNUSABLE',
      `${file} was made from another database (${made.databaseName}) than the one given (${database})`,
      {
        hint: 'name another file, or delete this one if it is not needed any more',
        facts: { file },
      },
    );
  } finally {
    await disconnect(client);
  }
}

function originOf(file: string): FileOrigin {
  using reader = new ReplicaPositionReader(file);
  return readOrigin(reader.database);
}
