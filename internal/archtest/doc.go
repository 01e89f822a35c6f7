// Package archtest holds the shape of the house: tests over the import graph and the source files. It has no code of its
// own, does no I/O beyond reading this module, and is never part of the product.
package archtest
