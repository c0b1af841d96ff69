package wire

import (
	"encoding/json"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skerry.dev/skerry/pkg/edge/store"
)

var metaDescriptions = metav1.ObjectMeta{}.SwaggerDoc()

// columns are those of the API server's default table convertor.
func columns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		{Name: "Name", Type: "string", Format: "name", Description: metaDescriptions["name"]},
		{Name: "Created At", Type: "date", Description: metaDescriptions["creationTimestamp"]},
	}
}

func (m Media) row(o store.Object) (metav1.TableRow, error) {
	p, err := Meta(o)
	if err != nil {
		return metav1.TableRow{}, err
	}
	row := metav1.TableRow{Cells: []any{p.Name, p.CreationTimestamp.UTC().Format(time.RFC3339)}}
	switch m.IncludeObject {
	case metav1.IncludeNone:
		if p.Annotations[metav1.InitialEventsAnnotationKey] != "true" {
			return row, nil
		}
		fallthrough
	default:
		p.SetGroupVersionKind(schema.GroupVersionKind{Group: metaGroup, Version: m.Version, Kind: "PartialObjectMetadata"})
		row.Object.Raw, err = json.Marshal(p)
	case metav1.IncludeObject:
		row.Object.Raw, err = jsonOf(Media{Encoding: JSON}, o, false)
	}
	return row, err
}

func (m Media) tableOf(o store.Object) (*metav1.Table, error) {
	row, err := m.row(o)
	if err != nil {
		return nil, err
	}
	head, err := headOf(o)
	if err != nil {
		return nil, err
	}
	table := &metav1.Table{
		TypeMeta: metav1.TypeMeta{Kind: "Table", APIVersion: metaGroup + "/" + m.Version},
		ListMeta: metav1.ListMeta{ResourceVersion: head.resourceVersion},
		Rows:     []metav1.TableRow{row},
	}
	if !m.NoHeaders {
		table.ColumnDefinitions = columns()
	}
	return table, nil
}
