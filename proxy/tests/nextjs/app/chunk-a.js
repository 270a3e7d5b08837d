export const version = 'a ' + process.env.VERSION;
