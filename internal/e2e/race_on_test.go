//go:build race

package e2e

// raceFlag builds the replicas with the race detector whenever the tests run with it.
const raceFlag = "-race"
