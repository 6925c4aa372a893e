import { createServer } from 'node:net';
import pg from 'pg';
import { describe, expect, it } from 'vitest';
import { RivuletError } from '../../src/errors.ts';
import { checkUrl, connect, postgresError, redactUrl } from '../../src/source/connection.ts';

function databaseError(code: string, message: string): pg.DatabaseError {
  const error = new pg.DatabaseError(message, message.length, 'error');
  error.code = code;
  return error;
}

describe('checkUrl and redactUrl', () => {
  it.each([
    'postgres://localhost/db',
    'postgresql://u:p@[::1]:5432/db?sslmode=disable',
    'postgresql:///db?host=/var/run/postgresql',
  ])('takes %s', (url) => {
    expect(() => checkUrl(url)).not.toThrow();
  });

  it.each([
    '',
    'localhost',
    'host=localhost password=hush',
    'mysql://u:hush@h/db',
    'postgres://u:hush@h:70000/db',
    'postgres://u:hu%sh@h:port/db',
    'postgres://u:hush@h/db?sslrootcert=/nowhere/ca.pem',
  ])('refuses %s without repeating its password', (url) => {
    try {
      checkUrl(url);
      expect.unreachable();
    } catch (error) {
      expect(error).toMatchObject({ code: 'CONFIG', exitCode: 2 });
      expect(String(error)).not.toContain('hush');
    }
  });

  it('hides the password wherever it stands', () => {
    expect(redactUrl('postgres://u:hush@h:1/db')).toBe('postgres://u:***@h:1/db');
    expect(redactUrl('postgres://u@h/db?password=hush&sslmode=disable')).toBe(
      'postgres://u@h/db?password=***&sslmode=disable',
    );
    expect(redactUrl('not a url hush')).not.toContain('hush');
  });
});

describe('postgresError', () => {
  it.each([
    ['28P01', 'password authentication failed for user "u"', 'POSTGRES_AUTH'],
    ['28000', 'no pg_hba.conf entry for host', 'POSTGRES_AUTH'],
    ['3D000', 'database "x" does not exist', 'POSTGRES_AUTH'],
    ['42501', 'permission denied for table t', 'PRIVILEGE'],
    ['55006', 'replication slot "rivulet" is active for PID 1', 'SLOT_IN_USE'],
    ['53400', 'all replication slots are in use', 'SERVER_UNSUITABLE'],
    ['53300', 'sorry, too many clients already', 'POSTGRES_UNREACHABLE'],
    ['57P01', 'terminating connection due to administrator command', 'POSTGRES_UNREACHABLE'],
    ['57P03', 'the database system is starting up', 'POSTGRES_UNREACHABLE'],
    ['08P01', 'unsupported startup parameter: replication', 'SERVER_UNSUITABLE'],
    ['08006', 'connection failure', 'POSTGRES_UNREACHABLE'],
    ['42704', 'replication slot "rivulet" does not exist', 'SLOT_LOST'],
    ['55000', 'can no longer get changes from replication slot "rivulet"', 'SLOT_LOST'],
    ['55000', 'can no longer access replication slot "rivulet"', 'SLOT_LOST'],
    ['42704', 'publication "rivulet" does not exist', 'PUBLICATION'],
    ['55000', 'logical decoding requires wal_level >= logical', 'SERVER_UNSUITABLE'],
    ['42601', 'syntax error at or near "x"', 'POSTGRES_ERROR'],
  ])('%s %s is %s', (sqlstate, message, code) => {
    const error = postgresError(databaseError(sqlstate, message), 'doing it');
    expect(error.code).toBe(code);
    expect(error.message).toBe(`doing it: ${message}`);
    expect(error.facts).toEqual({ sqlstate });
  });

  it.each([
    [Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' }), 'POSTGRES_UNREACHABLE'],
    [
      new AggregateError([Object.assign(new Error('connect ECONNREFUSED ::1'), { code: 'ECONNREFUSED' })]),
      'POSTGRES_UNREACHABLE',
    ],
    [
      Object.assign(new Error('self-signed certificate'), { code: 'DEPTH_ZERO_SELF_SIGNED_CERT' }),
      'POSTGRES_AUTH',
    ],
    [new Error('SASL: SCRAM-SERVER-FIRST-MESSAGE: client password must be a string'), 'POSTGRES_AUTH'],
    [new Error('timeout expired'), 'POSTGRES_UNREACHABLE'],
    [new Error('Connection terminated unexpectedly'), 'POSTGRES_UNREACHABLE'],
    [new Error('The server does not support SSL connections'), 'POSTGRES_UNREACHABLE'],
  ])('%s', (error, code) => {
    expect(postgresError(error, 'connecting').code).toBe(code);
  });

  it.each([
    [
      Object.assign(new Error('self-signed certificate'), { code: 'SELF_SIGNED_CERT_IN_CHAIN' }),
      /sslrootcert=FILE.*no-verify/,
    ],
    [
      databaseError('28000', 'no pg_hba.conf entry for host "h", user "u", database "d", no encryption'),
      /add \?sslmode=verify-full/,
    ],
    [databaseError('28000', 'no pg_hba.conf entry for host "h", SSL encryption'), /pg_hba\.conf$/],
    [new Error('The server does not support SSL connections'), /sslmode=disable/],
  ])('%s says what TLS needs', (error, hint) => {
    expect(postgresError(error, 'connecting').hint).toMatch(hint);
  });

  it('gives our own errors back', () => {
    const error = new RivuletError('CLOSED', 'closed');
    expect(postgresError(error, 'x')).toBe(error);
  });
});

describe('connect', () => {
  it('gives up on a server that does not answer', async () => {
    const sockets = new Set<import('node:net').Socket>();
    const silent = createServer((socket) => sockets.add(socket.on('error', () => undefined)));
    await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve));
    const { port } = silent.address() as import('node:net').AddressInfo;
    const url = `postgres://u:hush@127.0.0.1:${port}/db`;
    await expect(connect(url, { applicationName: 't', connectTimeoutMs: 50 })).rejects.toMatchObject({
      code: 'POSTGRES_UNREACHABLE',
    });
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => silent.close(resolve));
    const refused = connect(url, { applicationName: 't' });
    await expect(refused).rejects.toMatchObject({ code: 'POSTGRES_UNREACHABLE' });
    await expect(refused).rejects.not.toThrow(/hush/);
  });
});
