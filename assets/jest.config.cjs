module.exports = {
  testEnvironment: 'node',
  roots: ['<rootDir>/src', '<rootDir>/test/unit'],
  testMatch: ['**/*.test.ts', '**/*.test.tsx', '**/*.test.cjs'],
  transform: { '\\.tsx?$': '<rootDir>/esbuild-transform.cjs' },
  collectCoverageFrom: ['src/core/**/*.ts', '!src/core/**/*.test.ts', '!src/core/testing.ts'],
  coverageProvider: 'v8',
  coverageReporters: ['text'],
  coverageThreshold: { global: { statements: 80, branches: 80, functions: 80, lines: 80 } },
};
