# One image for every process: `docker run rivulet replicator …`, `docker run rivulet replica …`.

FROM node:24-bookworm-slim AS build
WORKDIR /build
COPY package.json package-lock.json ./
# The package's own scripts build from sources that are not there yet; better-sqlite3 brings its binaries.
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY tsconfig.json tsconfig.build.json ./
COPY scripts ./scripts
COPY src ./src
COPY examples ./examples
RUN npm run build && npm prune --omit=dev --ignore-scripts --no-audit --no-fund

FROM node:24-bookworm-slim
ENV NODE_ENV=production
WORKDIR /app
COPY --from=build /build/node_modules ./node_modules
COPY --from=build /build/dist ./dist
COPY package.json LICENSE ./
COPY bin ./bin
COPY sql ./sql
RUN ln -s /app/bin/rivulet.cjs /usr/local/bin/rivulet \
  && install -d -o node -g node -m 0700 /data
# A volume that is made here takes over the directory's owner.
VOLUME /data
USER node
ENTRYPOINT ["rivulet"]
CMD ["--help"]
