// Package repo holds the rules of the repository as tests: which way imports
// run, that every package says what it is for, that links in the docs lead
// somewhere. It reads source files only and knows nothing of what they do.
package repo
