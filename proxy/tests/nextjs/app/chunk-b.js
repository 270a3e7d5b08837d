export const version = 'b ' + process.env.VERSION;
