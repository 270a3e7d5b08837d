#!/bin/sh
# Makes a small Next.js app with the guide's health route in DIRECTORY, and builds it. Needs npm and its registry.
#
#   app-shim/tests/node/next.sh /tmp/next-app
#   UH_NEXT_APP=/tmp/next-app cargo test -p uh-app-shim a_real_next_app
set -eu
directory=${1:?usage: next.sh DIRECTORY}
mkdir -p "$directory/app/api/health"
cd "$directory"
cat >package.json <<'JSON'
{ "name": "next-app", "version": "1.0.0", "private": true }
JSON
cat >app/layout.js <<'JS'
export default function Layout({ children }) {
  return <html><body>{children}</body></html>;
}
JS
cat >app/page.js <<'JS'
export default function Page() {
  return <p>hello</p>;
}
JS
cat >app/api/health/route.js <<'JS'
import { NextResponse } from 'next/server';

export const dynamic = 'force-dynamic';

export async function GET() {
  return NextResponse.json({
    status: 'healthy',
    timestamp: new Date().toISOString(),
    deployment: process.env.DEPLOYMENT_ENV || 'blue',
    version: process.env.npm_package_version,
    uptime: process.uptime(),
  });
}
JS
export NEXT_TELEMETRY_DISABLED=1
npm install --no-audit --no-fund next react react-dom
node node_modules/next/dist/bin/next build
