// Package gridname is how the children of grids are named, and how a pod of a
// StatefulSetGrid is called inside its site. The controller and the hub agree on
// it here; it must not know either.
//
// The child of grid web in site east is web-east. Two pairs of grid and site
// never have one name, because a grid's name has no "--" in it and begins and
// ends with a letter or digit:
//
//	web-east               the site's name has no "-"
//	web--plant-7           the site's name has one: the first "--" is the border
//	web-plant-7---k3b…     it is too long, or no part of a host name: a hash tells
//	                       the pair, and no other name has "---"
package gridname

import (
	"crypto/sha256"
	"encoding/base32"
	"strings"
)

const (
	// MaxLength of a name of a child. The controller of StatefulSets appends a
	// hash of 11 characters to it in the value of a label, which ends at 63.
	MaxLength = 52

	hashLength = 13 // 65 bits
)

// Child is the name of the child of a grid in the site with the given value of
// the grid's key.
func Child(grid, site string) string {
	border := "-"
	if strings.Contains(site, "-") {
		border = "--"
	}
	name := grid + border + site
	if len(name) <= MaxLength && !strings.Contains(site, "---") && isLabel(site) && isLabel(grid) {
		return name
	}
	sum := sha256.Sum256([]byte(grid + "\x00" + site))
	hash := strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:]))[:hashLength]
	return readable(grid+"-"+site, MaxLength-hashLength-len("---")) + "---" + hash
}

// Hostname is what the pod of a StatefulSetGrid with this host name is called
// inside its site: web-0 for web-east-0. It is not ok when the host name is not
// that of a pod of the grid in that site.
func Hostname(grid, site, hostname string) (name string, ok bool) {
	ordinal, found := strings.CutPrefix(hostname, Child(grid, site)+"-")
	if !found || ordinal == "" || strings.Trim(ordinal, "0123456789") != "" {
		return "", false
	}
	return grid + "-" + ordinal, true
}

// isLabel says whether s can be part of a host name.
func isLabel(s string) bool {
	if s == "" || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool { return !isPlain(r) }) < 0
}

func isPlain(r rune) bool { return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' }

// readable makes the beginning of a host name of s.
func readable(s string, atMost int) string {
	plain := strings.Map(func(r rune) rune {
		if isPlain(r) {
			return r
		}
		return '-'
	}, strings.ToLower(s))
	for strings.Contains(plain, "--") {
		plain = strings.ReplaceAll(plain, "--", "-")
	}
	return strings.Trim(plain[:min(len(plain), atMost)], "-")
}
