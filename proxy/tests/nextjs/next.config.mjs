// VERSION is that of the deploy. A deployment id has only letters, digits, hyphens and underscores.
export default {
  output: 'standalone',
  outputFileTracingRoot: import.meta.dirname,
  deploymentId: process.env.VERSION.replaceAll(/[^A-Za-z0-9_-]/g, '-'),
  env: { VERSION: process.env.VERSION },
};
