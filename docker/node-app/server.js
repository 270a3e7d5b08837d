// An app without signal handling or draining: app-shim does that.
const http = require("node:http");

const backend = process.env.DEPLOYMENT_ENV ?? "blue";
const version = process.env.APP_VERSION ?? "0.0.0";

const server = http.createServer((request, response) => {
  const delay = Number(new URL(request.url, "http://app").searchParams.get("ms") ?? 0);
  setTimeout(() => {
    response.writeHead(200, { "content-type": "text/plain", "x-backend": backend, "x-version": version });
    response.end(`${backend} ${version}\n`);
  }, delay);
});

server.listen(Number(process.env.PORT ?? 3000), "127.0.0.1");
