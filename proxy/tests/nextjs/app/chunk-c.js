export const version = 'c ' + process.env.VERSION;
