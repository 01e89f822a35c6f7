module.exports = {
  testEnvironment: 'node',
  roots: ['<rootDir>/src', '<rootDir>/test/unit'],
  testMatch: ['**/*.test.ts', '**/*.test.tsx', '**/*.test.cjs'],
  moduleFileExtensions: ['ts', 'tsx', 'js', 'cjs', 'mjs', 'json'],
  // Preact comes as ES modules only, which Jest reads as CommonJS.
  transform: { '\\.(tsx?|mjs)$': '<rootDir>/esbuild-transform.cjs' },
  transformIgnorePatterns: ['/node_modules/(?!preact/)'],
  collectCoverageFrom: ['src/core/**/*.ts', '!src/core/**/*.test.ts', '!src/core/testing.ts'],
  coverageProvider: 'v8',
  coverageReporters: ['text'],
  coverageThreshold: { global: { statements: 80, branches: 80, functions: 80, lines: 80 } },
};
